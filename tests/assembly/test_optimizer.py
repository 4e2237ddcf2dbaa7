"""Learning rate, EMA and schedule from the options."""
import math
from argparse import Namespace

import pytest
import torch

from agmax_timm.assembly import optimizer
from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args

SEVERAL = '--task multilabel --num-classes 3 --dataset hfds/x'


@pytest.mark.parametrize('flags, batch_size, lr', [
    ('--opt lamb', 32, 0.1), ('--opt lamb', 64, 0.1 * math.sqrt(2)), ('--opt adamw', 64, 0.1 * math.sqrt(2)),
    ('--opt sgd', 64, 0.2), ('--opt lamb --lr-base-scale linear', 64, 0.2),
    ('--opt sgd --lr-base-scale sqrt', 64, 0.1 * math.sqrt(2)), ('--lr-base 0.3 --lr-base-size 128', 64, 1.2),
    ('--lr 0.3', 64, 0.3)])
def test_the_learning_rate_is_scaled_by_the_images_of_an_update_on_all_ranks(monkeypatch, flags, batch_size, lr):
    """timm's 0.1 at 256 images, here on 4 ranks in 2 batches."""
    monkeypatch.setattr(optimizer, 'world_size', lambda: 4)
    options = parse_train_args(['DIR', '--grad-accum-steps', '2', *flags.split()])
    assert optimizer.with_learning_rate(options, batch_size).lr == pytest.approx(lr)


def built(flags, model):
    return optimizer.build_optimizer(
        parse_train_args(['DIR', *flags.split()]), Namespace(get_trainable_module=lambda: model))


@pytest.mark.filterwarnings('ignore:It is highly recommended')
@pytest.mark.parametrize('opt', ['kron', 'lookahead_kronw'])
def test_kron_keeps_the_weights_of_ranks_equal(monkeypatch, opt):
    """Each rank has its own random numbers, and DDP gives all of them the same gradients."""
    monkeypatch.setattr(optimizer, 'is_distributed', lambda: True)
    weights = []
    for rank in range(2):
        model = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(model.weight, 0.5)
        of_rank = built(f'--opt {opt} --lr 0.1', model)
        torch.manual_seed(42 + rank)
        with torch.compiler.set_stance('force_eager'):
            for step in range(3):
                model.weight.grad = torch.linspace(-1, step, 6).view(2, 3)
                of_rank.step()
        weights.append(model.weight.detach())
    assert torch.equal(*weights) and not torch.equal(weights[0], torch.full((2, 3), 0.5))


@pytest.mark.filterwarnings('ignore:It is highly recommended')
def test_kron_is_that_of_timm_on_one_process_and_with_given_arguments(monkeypatch):
    assert not built('--opt kron --lr 0.1', torch.nn.Linear(3, 2)).deterministic
    monkeypatch.setattr(optimizer, 'is_distributed', lambda: True)
    given = built('--opt kron --lr 0.1 --opt-kwargs deterministic=False', torch.nn.Linear(3, 2))
    assert not given.deterministic


@pytest.mark.parametrize('opt', ['adahessian', 'lookahead_adahessian'])
def test_second_derivatives_are_refused_on_several_processes(monkeypatch, opt):
    flags, model = f'--opt {opt} --lr 0.1', torch.nn.Linear(3, 2)
    assert built(flags, model).is_second_order
    monkeypatch.setattr(optimizer, 'is_distributed', lambda: True)
    with pytest.raises(OptionError, match=f"^--opt '{opt}' needs second derivatives, .*: train with one process"):
        built(flags, model)


@pytest.mark.parametrize('agmax', ['', '--agmax'])
@pytest.mark.parametrize('patterns', ['head.*', "['head.*']", "('head.*',)"])
def test_one_pattern_of_the_fallback_is_a_text_or_a_list(agmax, patterns):
    """The star alone would match every name."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2, bias=False) for name in ('body', 'head')})
    module = torch.nn.ModuleDict({'model': model}) if agmax else model
    groups = built(f'--opt muon --lr 0.1 --opt-kwargs fallback_list={patterns} {agmax}', module).param_groups
    fallback = [group['params'] for group in groups if group.get('use_fallback')]
    assert fallback == [[model['head'].weight]]


@pytest.mark.parametrize('flags, expected', [
    ('', []), ('--model-ema', [dict(decay=0.9998, use_warmup=False, device=None)]),
    ('--model-ema --model-ema-decay 0.9 --model-ema-warmup --model-ema-force-cpu',
     [dict(decay=0.9, use_warmup=True, device=torch.device('cpu'))])])
def test_the_average_has_the_settings_of_its_options(flags, expected):
    made = []
    task = Namespace(setup_ema=lambda **kwargs: made.append(kwargs))
    optimizer.build_ema(parse_train_args(['DIR', *flags.split()]), task)
    assert made == expected


@pytest.mark.parametrize('flags, rises', [
    ('', True), ('--eval-metric loss', False), ('--val-split=', False), (SEVERAL, True),
    (f'{SEVERAL} --val-split=', False)])
def test_a_plateau_schedule_keeps_its_rate_while_the_metric_gets_better(flags, rises):
    """The metric is that of the validation data; without them, it is the loss of training."""
    words = f'DIR --sched plateau --patience-epochs 0 --warmup-epochs 0 {flags}'
    options = parse_train_args(words.split())
    for better in (True, False):
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler, _ = optimizer.build_scheduler(options, sgd, 1)
        for epoch in range(1, 5):
            scheduler.step(epoch, 50. + (epoch if better is rises else -epoch))
        assert sgd.param_groups[0]['lr'] == pytest.approx(0.1 if better else 1e-4)
