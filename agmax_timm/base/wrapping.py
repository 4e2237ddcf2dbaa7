"""Objects that wrap another one, and pass attributes on to it."""
from typing import Any


class Wrapper:
    """Mixin of a class that wraps an object. It has the attributes and the length of that object besides its own.

    Attributes:
        wraps: Name of the attribute that holds the wrapped object.
    """
    wraps: str

    def __getattr__(self, name: str) -> Any:
        if name == self.wraps:  # a copy in progress
            raise AttributeError(name)
        return getattr(getattr(self, self.wraps), name)

    def __len__(self) -> int:
        return len(getattr(self, self.wraps))


def passed_on(owner: str, name: str) -> Any:
    """Return a property that reads and sets an attribute of the attribute `owner`."""
    return property(lambda self: getattr(getattr(self, owner), name),
                    lambda self, value: setattr(getattr(self, owner), name, value))
