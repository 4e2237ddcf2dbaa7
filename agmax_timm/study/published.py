"""Published results for comparison with those of a study. docs/studies.md describes the CSV file."""
import csv
import io
import math

from ..base.errors import OptionError
from ..base.text import nearest, quoted
from ..base.text_file import read_text

Published = dict[tuple[str, ...], float]  # by augmentation, setting and method


def read_published(path: str, axes: dict[str, list[str]]) -> Published:
    """Return the numbers of a file; empty without a file.

    Args:
        path: Path of the CSV file, '' for none.
        axes: Names on each axis of the study, by augmentation, setting and method.

    Raises:
        OptionError: The file cannot be read, or has a name that is not on its axis.
    """
    if not path:
        return {}
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise OptionError(f'published: {error}') from error
    reader = csv.DictReader(line for line in io.StringIO(text) if line.strip() and not line.startswith('#'))
    needed = [*(axis for axis, names in axes.items() if names != ['']), 'value']
    if reader.fieldnames is None or set(reader.fieldnames) != set(needed):
        raise OptionError(f"'{path}': must have the columns {', '.join(needed)}, "
                          f"got {', '.join(map(repr, reader.fieldnames or ())) or 'none'}")
    published: Published = {}
    for row in reader:
        if any(row.get(None, ())):  # cells without a column; csv allows empty ones
            raise OptionError(f"'{path}': the row {quoted(row[column] for column in needed)} has too many "
                              'cells: write decimals with a point, and names with a comma in quotes')
        for axis, names in axes.items():
            if row.setdefault(axis, '') not in names:
                raise OptionError(f"'{path}': {axis} '{row[axis]}' is not in the study"
                                  f'{nearest(row[axis] or "", names)}: drop the line or rename it')
        place = tuple(row[column] for column in axes)
        if place in published:
            raise OptionError(f"'{path}': {quoted(filter(None, place))} occurs twice: drop one of them")
        published[place] = _number(row['value'], path)
    return published


def _number(text: str, path: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"'{path}': value must be a number, got {text!r}")
    return value
