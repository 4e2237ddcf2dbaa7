"""Text of messages: one line, lists of names, and proposals for misspelt names."""
import re
from collections.abc import Iterable, Sequence
from typing import Any


def one_line(message: Any, most: int | None = None) -> str:
    """Return a message or the text of an error as one line.

    Characters that cannot be printed become escape sequences, because names of files can hold any bytes.

    Args:
        message: Text or an error. An error without text is replaced by the name of its type.
        most: Maximum number of characters. Longer lines are cut off and end in '...'.
    """
    text = ' '.join(re.split(r'(?:[ \t]|\r?\n)+', str(message).strip(' \n\t')))
    if not text and isinstance(message, BaseException):
        text = type(message).__name__
    line = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in text)
    return line if most is None or len(line) <= most else f'{line[:most - 3]}...'


def listed(items: Sequence[Any], most: int = 8) -> str:
    """Return the first items, separated by commas, and the number of other items: 'a, b and 3 more'."""
    shown = ', '.join(map(str, items[:most]))
    return shown if len(items) <= most else f'{shown} and {len(items) - most} more'


def quoted(names: Iterable[Any], most: int = 8) -> str:
    """Return the first names in quotes, with escapes for invisible characters, and the number of other names."""
    return listed([repr(name) for name in names], most)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ', did you mean X?' for the known name with the smallest edit distance, '' if none is similar."""
    best = min(known, key=lambda other: edit_distance(name, other))
    return f', did you mean {best}?' if edit_distance(name, best) <= 1 + len(name) // 3 else ''


def edit_distance(a: str, b: str) -> int:
    """Return the Damerau-Levenshtein distance: the number of insertions, deletions, replacements and swaps."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and (letter, other) == (b[j - 2], a[i - 2]):
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


def even_next_to(number: int) -> str:
    """Return the even numbers next to an odd one as words: '6 or 8' for 7, '2' for 1."""
    return ' or '.join(str(even) for even in (number - 1, number + 1) if even)
