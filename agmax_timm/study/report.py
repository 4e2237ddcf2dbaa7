"""What a study writes: results.csv, table.csv, comparisons.csv, table.md and figure.png."""
import os

from ..base import atomic_write
from .comparisons import compare, comparisons_markdown, write_comparisons
from .definition import Study
from .figure import draw
from .outcome import Outcome
from .published import Published
from .table import aggregate, markdown, write_results, write_table


def report(study: Study, outcomes: list[Outcome], published: Published, folder: str) -> str:
    """Write the files into a folder; comparisons.csv only if the study has comparisons.

    Returns:
        The text of table.md.
    """
    rows = aggregate(study, outcomes, published)
    write_results(study, outcomes, os.path.join(folder, 'results.csv'))
    write_table(rows, os.path.join(folder, 'table.csv'))
    text = markdown(study, rows, outcomes)
    if study.comparisons:
        comparisons = compare(study, rows)
        write_comparisons(comparisons, os.path.join(folder, 'comparisons.csv'))
        text += comparisons_markdown(study, comparisons)
    with atomic_write.replacing(os.path.join(folder, 'table.md'), 'w', encoding='utf-8') as file:
        file.write(text)
    draw(study, rows, os.path.join(folder, 'figure.png'))
    return text
