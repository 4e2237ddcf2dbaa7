"""Errors about data: the user's to mend, told in one line."""


class DataError(ValueError):
    """Data that does not fit the options; the message names the folder or flag, what was found and the remedy."""


class SampleError(DataError):
    """A sample that cannot be used.

    A loader raises what its workers raised again, with their traceback as the message: the line is at its end.
    """

    def __str__(self) -> str:
        return super().__str__().rpartition(f'{type(self).__module__}.{type(self).__name__}: ')[2].rstrip()


class DamagedError(SampleError):
    """Samples that cannot be decoded: one in evaluation, too many in training."""


class LabelError(SampleError):
    """A label that is no index of a class; the message names the sample and the value."""


class WorkerError(RuntimeError):
    """A loader worker that died; the message has torch's reason and the remedy."""


class UnequalError(ValueError):
    """A step of augmentation that has no equal on arrays; the message names it."""
