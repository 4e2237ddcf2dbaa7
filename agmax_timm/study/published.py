"""Published results for comparison with those of a study. docs/studies.md describes the CSV file."""
import csv
import io
import math

from ..base.errors import OptionError
from ..base.text import nearest, quoted
from ..base.text_file import read_text
from .definition import Level, Study

_COLUMNS = ('augmentation', 'setting', 'method', 'value')

Published = dict[tuple[str, ...], float]  # by augmentation, setting and method


def read_published(study: Study) -> Published:
    """Return the numbers of the published file of a study; empty without a file.

    Raises:
        OptionError: The file cannot be read, or has a name that the study does not have.
    """
    if not study.published:
        return {}
    try:
        text = read_text(study.published)
    except (OSError, ValueError) as error:
        raise OptionError(f"'{study.path}': published: {error}") from error
    reader = csv.DictReader(line for line in io.StringIO(text) if line.strip() and not line.startswith('#'))
    axes = dict(zip(_COLUMNS, (study.augmentations, study.settings, study.methods)))
    needed = [column for column in _COLUMNS if column == 'value' or axes[column] != [Level()]]
    if reader.fieldnames is None or set(reader.fieldnames) != set(needed):
        raise OptionError(f"'{study.published}': must have the columns {', '.join(needed)}, "
                          f"got {', '.join(map(repr, reader.fieldnames or ())) or 'none'}")
    published: Published = {}
    for row in reader:
        if any(row.get(None, ())):  # cells without a column; csv allows empty ones
            raise OptionError(f"'{study.published}': the row {quoted(row[column] for column in needed)} has too many "
                              'cells: write decimals with a point, and names with a comma in quotes')
        for axis, levels in axes.items():
            names = [level.name for level in levels]
            if row.setdefault(axis, '') not in names:
                raise OptionError(f"'{study.published}': {axis} '{row[axis]}' is not in '{study.path}'"
                                  f'{nearest(row[axis] or "", names)}: drop the line or rename it')
        place = tuple(row[column] for column in axes)
        if place in published:
            raise OptionError(f"'{study.published}': {quoted(filter(None, place))} occurs twice: drop one of them")
        published[place] = _number(row['value'], study.published)
    return published


def _number(text: str, path: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"'{path}': value must be a number, got {text!r}")
    return value
