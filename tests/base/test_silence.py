"""Objects that are built only for a check emit no messages. Those of the run do."""
import logging
import warnings

import pytest
from timm.models import create_model
from timm.optim import list_optimizers
from timm.task import ClassificationTask
from torch import nn

from agmax_timm.assembly import optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.base.silence import silenced
from agmax_timm.options import timm_names
from agmax_timm.options.parse import parse_train_args


def options(*argv):
    return parse_train_args(['data', '--lr', '0.01', *argv])


def said(caplog, recwarn) -> list[str]:
    """Return the log records and warnings of a test, without those about what earlier tests left open.

    Python reports these whenever it collects them, so they can come in any test.
    """
    return caplog.messages + [str(w.message) for w in recwarn.list if not issubclass(w.category, ResourceWarning)]


def test_silence_ends_with_its_block(caplog, recwarn):
    with pytest.raises(RuntimeError), silenced():
        logging.getLogger('timm').error('unheard')
        warnings.warn('unheard', stacklevel=1)
        raise RuntimeError
    assert said(caplog, recwarn) == []
    logging.getLogger('timm').warning('heard')
    with pytest.warns(UserWarning, match='heard'):
        warnings.warn('heard', stacklevel=1)
    assert caplog.messages == ['heard']


@pytest.mark.slow
@pytest.mark.parametrize('flags', [['--layer-decay', '0.5'], []], ids=['layer decay', 'none'])
def test_checks_of_optimizers_emit_no_messages(caplog, recwarn, flags):
    for opt in list_optimizers(exclude_filters=['bnb*', 'fused*']):
        timm_names.check_optimizer(options('--opt', opt, *flags))
    assert said(caplog, recwarn) == []


@pytest.mark.parametrize('sched', ['cosine', 'step', 'multistep', 'poly', 'tanh', 'plateau', 'constant'])
def test_checks_of_schedules_emit_no_messages(caplog, recwarn, sched):
    timm_names.check_schedule(options('--sched', sched, '--lr-noise', '0.2', '0.8'))
    assert said(caplog, recwarn) == []


def test_the_warning_of_layer_decay_is_about_the_trained_model(caplog):
    args = options('--opt', 'adamw', '--layer-decay', '0.5')
    optimizer.build_optimizer(args, ClassificationTask(create_model('test_resnet', num_classes=3), verbose=False))
    assert 'no effect' not in caplog.text
    optimizer.build_optimizer(args, ClassificationTask(nn.Linear(2, 2), verbose=False))
    assert 'no effect' in caplog.text, 'a model of one layer has no layer decay'


def test_errors_found_by_a_check_are_raised():
    with pytest.raises(OptionError, match="--opt 'sgd'"):
        timm_names.check_optimizer(options('--opt', 'sgd', '--opt-kwargs', 'nosuch=1'))
