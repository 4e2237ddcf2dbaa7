"""The log of a run: remaining time, a progress bar on a terminal, lines in a file, curves."""
import io
import math
import re
import sys

import pytest
import torch

from agmax_timm.options.parse import parse_train_args
from agmax_timm.training import run as training
from agmax_timm.training.output import log as run_log
from agmax_timm.training.output.log import plot_curves
from agmax_timm.training.updates.loop import Progress, Span
from tests.helpers.exact import FLAGS

CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]')  # but tabs, which timm indents with


@pytest.fixture
def run(photos, tmp_path):
    """Function: the lines of train.log after two epochs of 6 updates."""
    def start(*flags):
        training.train(parse_train_args([str(photos), *FLAGS, '-j', '0', '--epochs', '2', '--output', str(tmp_path),
                                         '--experiment', 'run', *flags]))
        return (tmp_path / 'run' / 'train.log').read_text()
    return start


def test_the_remaining_time_uses_the_speed_of_this_process(monkeypatch, caplog):
    """A run of 20 updates resumed after the fourth. 6 updates took 30 seconds, 10 remain."""
    now = [100.]
    monkeypatch.setattr(run_log.time, 'perf_counter', lambda: now[0])
    caplog.set_level('INFO')
    progress_log = run_log.ProgressLog(20, done_updates=4, num_epochs=3)
    now[0] = 130.
    span = Span(images=8, updates=1, start=now[0] - 1)
    nothing = torch.zeros(())
    progress_log.train_step(Progress(1, 1, 8, {'loss': 1.}, {'loss': 1.}, span, span, nothing, nothing), 0.1)
    assert caplog.messages[-1].endswith('  ETA: 00:50')


def test_a_file_has_only_lines_and_the_last_one_has_no_remaining_time(run, capsys):
    log = run('--stop-epoch', '1')
    assert not CONTROL.search(log) and not CONTROL.search(capsys.readouterr().err)
    lines = [line for line in log.splitlines() if 'Train: ' in line]
    assert len(lines) == 4 and lines[-1].endswith('  ETA: 00:00'), 'of the epochs to --stop-epoch'


def test_a_terminal_shows_a_bar_instead_of_lines_of_updates(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setattr(sys, 'stderr', Terminal())
    log = run('--stop-epoch', '1')
    shown = sys.stderr.getvalue()
    assert 'Train: 0 [' in log and 'Train: 0 [' not in shown and not CONTROL.search(log)
    assert '\r' in shown and 'Epoch 0/1' in shown and '6/6 [' in shown and 'Test 0: Loss' in shown


@pytest.mark.parametrize('decreasing, order', [(True, [2, 0, 3, 1]), (False, [2, 1, 3, 0])])
def test_the_best_result_is_last_and_nan_is_the_worst(decreasing, order):
    results = [{'epoch': epoch, 'train': {}, 'validation': {'loss': loss}}
               for epoch, loss in enumerate([3., 1., math.nan, 2.])]
    assert [result['epoch'] for result in run_log.best_last(results, 'loss', decreasing)] == order
    many = [*results[:2], *(results[2:3] * 10), results[3]]
    assert run_log.best_last(many, 'loss', decreasing)[-3:] == [results[number] for number in order[1:]]


def read(tmp_path, text):
    path = tmp_path / 'summary.csv'
    path.write_text(text)
    return run_log.read_curves(str(path))


def test_the_curves_of_agmax_have_each_term_on_its_own_axis(tmp_path):
    curves = read(tmp_path, 'epoch,train_loss,eval_loss,eval_top1,lr,train_ce,train_agreement,train_divergence\n'
                            '0,1.5,,,0.1,2.5,-1.5,0.5\n1,1,2.1,50,0.05,2,-1.25,0.25\n')
    assert curves == {
        'classification loss': {'training': [(0, 2.5), (1, 2.)], 'validation': [(1, 2.1)]},
        'top-1 (%)': {'validation': [(1, 50.)]},
        'agreement': {'training': [(0, -1.5), (1, -1.25)]},
        'divergence': {'training': [(0, 0.5), (1, 0.25)]},
        'learning rate': {'learning rate': [(0, 0.1), (1, 0.05)]},
    }


def test_the_curves_of_runs_without_agmax_have_their_metrics(tmp_path):
    plain = read(tmp_path, 'epoch,train_loss,eval_loss,eval_map,lr\n0,1.5,2,30,0.1\n')
    assert plain['classification loss'] == {'training': [(0, 1.5)], 'validation': [(0, 2.)]}
    assert list(plain) == ['classification loss', 'mAP (%)', 'learning rate']
    averaged = read(tmp_path, 'epoch,train_loss,eval_loss,eval_top1,lr,raw_top1,ema_top1\n0,1,2,41,0.1,40,41\n')
    assert averaged['top-1 (%)'] == {'validation': [(0, 40.)], 'validation of the EMA': [(0, 41.)]}


def test_the_curves_of_a_distillation_have_one_panel_of_classification(tmp_path):
    curves = read(tmp_path, 'epoch,train_loss,eval_loss,lr,train_task_loss,train_kd_loss\n0,3,2,0.1,1.5,1.25\n')
    assert curves == {
        'classification loss': {'training': [(0, 1.5)], 'validation': [(0, 2.)]}, 'top-1 (%)': {},
        'kd loss': {'training': [(0, 1.25)]}, 'learning rate': {'learning rate': [(0, 0.1)]}}


def test_the_curves_of_a_summary_with_a_repeated_header_have_the_last_row_of_each_epoch(tmp_path):
    """timm's script repeats the header when it continues a run."""
    curves = read(tmp_path, 'epoch,train_loss,lr\n0,2,0.1\n1,1.5,0.1\nepoch,train_loss,lr\n1,1.25,0.1\n')
    assert curves['classification loss'] == {'training': [(0, 2.), (1, 1.25)]}


def test_curves_png_has_a_panel_for_each_term_and_none_for_missing_values(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run_log, 'save_figure', lambda path, draw, **size: draw(figure) or drawn.append(figure))
    figure = pytest.importorskip('matplotlib.figure').Figure()
    (tmp_path / 'summary.csv').write_text('epoch,train_loss,lr\n0,1.5,0.1\n1,1.25,0.05\n')
    plot_curves(str(tmp_path / 'summary.csv'), str(tmp_path / 'curves.png'))
    assert [axes.get_title() for axes in drawn[0].axes] == ['classification loss', 'learning rate']
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[0, 1.5], [1, 1.25]]
    (tmp_path / 'summary.csv').write_text('epoch,train_loss,lr\n')
    plot_curves(str(tmp_path / 'summary.csv'), str(tmp_path / 'curves.png'))
    assert len(drawn) == 1
