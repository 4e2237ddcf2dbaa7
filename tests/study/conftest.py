"""A study without runs."""
import os

import pytest

from agmax_timm.study.definition import read_study
from agmax_timm.study.outcome import Outcome
from agmax_timm.study.plan import make_runs
from tests.helpers.studies import write_study


@pytest.fixture
def fake(tmp_path):
    """Function: a study without runs, and the outcomes of its runs from a dictionary by method and seed."""
    def make(values, **keys):
        study = read_study(write_study(tmp_path, **keys))
        runs = make_runs(study, 'data', str(tmp_path / 'out'))
        outcomes = [Outcome(run, 'complete', values[run.cell.method, run.seed], 0)
                    if (run.cell.method, run.seed) in values else Outcome(run, 'failed', error='it | broke')
                    for run in runs]
        os.makedirs(tmp_path / 'out', exist_ok=True)
        return study, outcomes, tmp_path / 'out'
    return make
