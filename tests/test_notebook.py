"""The notebook of examples/ runs, cell by cell."""
import re

import pytest

from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip('nbformat')
    nbclient = pytest.importorskip('nbclient')
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))  # of the kernel, in which the package is found, not installed
    notebook = nbformat.read(REPOSITORY / 'examples' / 'quickstart.ipynb', as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)  # no output of a machine
    training = next(cell for cell in code if 'epochs = 10\n' in cell.source)
    training.source = training.source.replace('epochs = 10\n', 'epochs = 1\n')
    nbclient.NotebookClient(notebook, timeout=60, resources=dict(metadata=dict(path=str(tmp_path)))).execute()

    outputs = [output for cell in code for output in cell.outputs]
    printed = ''.join(output.text for output in outputs if output.get('name') == 'stdout')
    trained, loaded = map(float, re.findall(r'(\d+\.\d+) %', printed))
    assert loaded == trained > 20  # of ten classes
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3  # views, curves and predictions
