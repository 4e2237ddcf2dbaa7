"""Warnings of options without effect: each row of the table by an example, and the table against effects in timm."""
import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
import yaml
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from agmax_timm.assembly.objective import build_criterion
from agmax_timm.options import parse as options_parse
from agmax_timm.options import timm_names, without_effect
from agmax_timm.options.declare import values
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser, validate_parser
from agmax_timm.options.surprises import surprises_of_run

MULTILABEL = '--task multilabel --num-classes 3 --dataset hfds/x'
# Options, the flag without effect, and the reason in the warning.
TRAINING = [
    ('--dataset-download', '--dataset-download', 'without --dataset torch/, hfids/ or tfds/'),
    ('--dataset-trust-remote-code', '--dataset-trust-remote-code', 'without --dataset hfds/ or hfids/'),
    ('--input-size 3 32 64 --img-size 64', '--img-size', 'with --input-size'),
    ('--pin-mem --no-pin-mem', '--pin-mem', 'with --no-pin-mem'),
    ('--amp-dtype bfloat16', '--amp-dtype', 'without --amp'),
    ('--torchcompile-mode max-autotune', '--torchcompile-mode', 'without --torchcompile'),
    ('--val-split= -vb 8', '--validation-batch-size', 'without --val-split'),
    ('--val-split= --eval-metric loss', '--eval-metric', 'without --val-split'),
    ('--naflex-loader --image-memory 8G', '--image-memory', 'with --naflex-loader'),
    ('-j 0 --worker-seeding part', '--worker-seeding', 'with --workers 0'),
    ('--pretrained-path x', '--pretrained-path', 'without --pretrained'),
    ('--pretrained --initial-checkpoint FILE', '--pretrained', 'with --initial-checkpoint, whose weights replace it'),
    ('--no-resume-opt', '--no-resume-opt', 'without --resume'),
    ('--fuser te', '--fuser', 'without --torchscript'),
    ('--drop-connect 0.1', '--drop-connect', 'with any model of timm: use --drop-path'),
    ('--no-aug --hflip 0', '--hflip', 'with --no-aug'),
    ('--no-aug --train-interpolation bicubic', '--train-interpolation', 'with --no-aug'),
    ('--no-aug --aa original --color-jitter 0.9', '--color-jitter', 'with --no-aug'),
    ('--train-crop-mode pad --scale 0.5 1', '--scale', 'with --train-crop-mode pad'),
    ('--train-crop-mode pad --ratio 1 1', '--ratio', 'with --train-crop-mode pad'),
    ('--naflex-loader --train-crop-mode rkrc', '--train-crop-mode', 'with --naflex-loader'),
    ('--aa original --color-jitter 0.9', '--color-jitter', "with --aa 'original': use 3a or imagenet"),
    ('--aa cifar10 --color-jitter 0.9', '--color-jitter', "with --aa 'cifar10': use 3a or imagenet"),
    ('--aa rand-m9 --color-jitter-prob 0.9', '--color-jitter-prob', "with --aa 'rand-m9': use 3a"),
    ('--color-jitter 0 --color-jitter-prob 0.9', '--color-jitter-prob', 'with --color-jitter 0'),
    ('--remode rand', '--remode', 'without --reprob'),
    ('--recount 3', '--recount', 'without --reprob'),
    ('--resplit', '--resplit', 'without --reprob'),
    ('--naflex-loader --reprob 0.2 --resplit', '--resplit', 'with --naflex-loader'),
    ('--mixup-prob 0.5', '--mixup-prob', 'without --mixup, --cutmix or --cutmix-minmax'),
    ('--mixup-mode elem', '--mixup-mode', 'without --mixup, --cutmix or --cutmix-minmax'),
    ('--mixup-off-epoch 5', '--mixup-off-epoch', 'without --mixup, --cutmix or --cutmix-minmax'),
    ('--mixup 0.2 --mixup-switch-prob 0.1', '--mixup-switch-prob', 'without --mixup and --cutmix together'),
    ('--cutmix 0.2 --cutmix-minmax 0.2 0.8', '--cutmix', 'with --cutmix-minmax, which is another CutMix'),
    ('--train-batches-per-epoch 9', '--train-batches-per-epoch', 'without --train-img-sizes'),
    ('--train-img-sizes 24 32 --train-size-random-mix 0.5', '--train-size-random-mix',
     'without --train-size-schedule progressive'),
    ('--naflex-loss-scale none', '--naflex-loss-scale', 'without --naflex-loader'),
    ('--multilabel-threshold 0.4', '--multilabel-threshold', 'without --task multilabel'),
    ('--agmax --agmax-loss kl --agmax-divergence-weight 2', '--agmax-divergence-weight', 'without --agmax-loss mi'),
    ('--bce-sum', '--bce-sum', 'without --loss bce'),
    ('--loss poly --bce-target-thresh 0.2', '--bce-target-thresh', 'without --loss bce'),
    ('--bce-pos-weight 2', '--bce-pos-weight', 'without --loss bce'),
    ('--bce-loss --bce-pos-weight 2 --loss-pos-weight 3', '--bce-pos-weight', 'with --loss-pos-weight'),
    ('--asl-gamma-neg 3', '--asl-gamma-neg', 'without --loss asl'),
    ('--poly-epsilon 1', '--poly-epsilon', 'without --loss poly'),
    ('--twoway-tp 3', '--twoway-tp', 'without --loss twoway'),
    (f'{MULTILABEL} --db-neg-scale 3', '--db-neg-scale', 'without --loss db'),
    ('--loss asl --smoothing 0 --asl-gamma-neg 3', '--asl-gamma-neg', 'with --smoothing 0'),
    ('--loss asl --asl-clip 0.1', '--asl-clip', 'without --task multilabel'),
    ('--class-stats FILE', '--class-stats', 'without --loss db or a weight of the loss by frequency'),
    ('--loss-weight-power 2', '--loss-weight-power',
     'without --loss-class-weight inv_freq or --loss-pos-weight neg_pos'),
    ('--loss-weight-beta 0.9', '--loss-weight-beta', 'without --loss-class-weight effective_num'),
    ('--loss-weight-max 2', '--loss-weight-max', 'without a weight of the loss by frequency'),
    ('--kd-temperature 2', '--kd-temperature', 'without --kd-model-name'),
    ('--kd-model-name x --kd-teacher-feature-dim 2', '--kd-teacher-feature-dim', 'without --kd-distill-type feature'),
    ('--kd-model-name x --kd-token-distill-type hard', '--kd-token-distill-type', 'without --kd-distill-type token'),
    ('--kd-model-name x --kd-distill-type feature --kd-temperature 2', '--kd-temperature',
     'with --kd-distill-type feature'),
    ('--kd-model-name x --kd-distill-type token --kd-token-distill-type hard --kd-temperature 2', '--kd-temperature',
     'with --kd-token-distill-type hard'),
    ('--val-split-seed 3', '--val-split-seed', 'without a share as --val-split, such as 0.1'),
    ('--clip-mode agc', '--clip-mode', 'without --clip-grad'),
    ('--layer-decay-min-scale 0.1', '--layer-decay-min-scale', 'without --layer-decay'),
    ('--lr 1 --lr-base 2', '--lr-base', 'with --lr'),
    ('--sched none --lr-noise 0.5', '--lr-noise', 'with --sched none'),
    ('--sched none --warmup-epochs 3', '--warmup-epochs', 'with --sched none: use --sched constant'),
    *((f'--sched {sched} --{flag}', f'--{flag.split()[0]}', f'without --sched {needed}')
      for sched, flag, needed in (
        ('step', 'lr-cycle-limit 2', 'cosine, tanh or poly'), ('wsd', 'lr-cycle-mul 2', 'cosine, tanh or poly'),
        ('plateau', 'lr-cycle-decay 0.2', 'cosine, tanh or poly'), ('tanh', 'lr-k-decay 2', 'cosine or poly'),
        ('cosine', 'lr-decay-fn exp', 'wsd or rsqrt'), ('wsd', 'lr-stable-timescale 3', 'rsqrt'),
        ('step', 'min-lr 0.1', 'cosine, tanh, plateau, poly, wsd or rsqrt'),
        ('step', 'cooldown-epochs 3', 'cosine, tanh, poly, wsd or rsqrt'),
        ('cosine', 'patience-epochs 3', 'plateau: to end a run early, use --early-stop N'),
        ('cosine', 'decay-milestones 1', 'multistep'), ('cosine', 'decay-epochs 3', 'step, wsd or rsqrt'),
        ('cosine', 'decay-rate 0.5', 'step, multistep, plateau or poly'))),
    ('--lr-noise-std 2', '--lr-noise-std', 'without --lr-noise'),
    ('--lr-cycle-mul 2', '--lr-cycle-mul', 'without --lr-cycle-limit 2 or more'),
    ('--warmup-epochs 0 --warmup-lr 0.1', '--warmup-lr', 'with --warmup-epochs 0'),
    ('--sched multistep --epochs 9 --decay-milestones 9 12', '--decay-milestones', 'with --epochs 9'),
    ('--sched step --epochs 9 --decay-epochs 9', '--decay-epochs', 'with --epochs 9'),
    ('--sync-bn --dist-bn broadcast', '--dist-bn', 'with --sync-bn'),
    ('--model-ema-decay 0.9', '--model-ema-decay', 'without --model-ema'),
    ('--early-stop-min-delta 1', '--early-stop-min-delta', 'without --early-stop'),
    ('--wandb-project x', '--wandb-project', 'without --log-wandb'),
    ('--naflex-loader --naflex-patch-size-probs', '--naflex-patch-size-probs', 'without --naflex-patch-sizes'),
]
VALIDATION = [
    ('--dataset-download', '--dataset-download', 'without --dataset torch/, hfids/ or tfds/'),
    ('--dataset-trust-remote-code', '--dataset-trust-remote-code', 'without --dataset hfds/ or hfids/'),
    ('--input-size 3 32 64 --img-size 64', '--img-size', 'with --input-size'),
    ('--pin-mem --no-pin-mem', '--pin-mem', 'with --no-pin-mem'),
    ('--train-split x', '--train-split', 'without a share as --split, such as 0.1'),
    ('--val-split-seed 3', '--val-split-seed', 'without a share as --split, such as 0.1'),
    ('--amp-dtype bfloat16', '--amp-dtype', 'without --amp'),
    ('--torchcompile-mode max-autotune', '--torchcompile-mode', 'without --torchcompile'),
    ('--pretrained --checkpoint FILE', '--pretrained', 'with --checkpoint, whose weights replace it'),
    ('--use-ema', '--use-ema', 'without --checkpoint'),
    ('--fuser te', '--fuser', 'without --torchscript or --aot-autograd'),
    ('--naflex-loader --crop-pct 0.9', '--crop-pct', 'with --naflex-loader, which shows whole images'),
    ('--tf-preprocessing --crop-pct 0.9', '--crop-pct', 'with --tf-preprocessing'),
    ('--naflex-max-seq-len 64', '--naflex-max-seq-len', 'without --naflex-loader'),
    ('--multilabel-threshold 0.4', '--multilabel-threshold', 'without --task multilabel'),
    ('--attack-norm l2', '--attack-norm', 'without --attack'),
    ('--attack fgsm --attack-steps 3', '--attack-steps', 'without --attack pgd'),
    ('--severities 3', '--severities', 'without --corruptions or --corruptions-dir'),
    ('--results-format json', '--results-format', 'without --results-file'),
]


@pytest.mark.parametrize('parse', [parse_train_args, parse_validate_args])
def test_more_workers_than_cores_are_named_once(capsys, monkeypatch, parse):
    monkeypatch.setattr(options_parse, 'cores', lambda: 5)
    parse(['data', '-j', '6'])
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{train_parser().prog}: warning: --workers 6 ')
    assert ' 5 cores' in line and '--workers 5' in line
    for count, words in ((5, ['-j', '5']), (2, [])):  # the default is not warned of
        monkeypatch.setattr(options_parse, 'cores', lambda count=count: count)
        parse(['data', *words])
        assert capsys.readouterr().err == ''


@cache
def defaults():
    return parse_train_args(['data'])


def options(**given):
    return replace(defaults(), **given)


def is_idle(args, *given):
    return any(name in row.names and row.when(args) for row in without_effect._TRAINING for name in given)


def warnings_of(capsys, parse, words, file):
    """Lines of warnings. Options that are refused together for another reason are tested one by one."""
    argv = ['data', *(str(file) if word == 'FILE' else word for word in words.split())]
    capsys.readouterr()
    parse(argv)
    return capsys.readouterr().err.splitlines()


@pytest.fixture
def unchecked(monkeypatch):
    """Parse without the checks that refuse, so that a row of the table can be tested although another rule applies."""
    for name in ('checks.check_train_args', 'checks.check_validate_args', 'combinations.check_combinations'):
        monkeypatch.setattr(f'agmax_timm.options.{name}', lambda *args: ())


@pytest.mark.parametrize('parse, prog, examples', [
    (parse_train_args, 'train', TRAINING), (parse_validate_args, 'validate', VALIDATION)], ids=['train', 'validate'])
def test_each_option_without_effect_is_named(capsys, tmp_path, unchecked, parse, prog, examples):
    for words, flag, reason in examples:
        if words.endswith('-probs'):
            words += ' 1'
        lines = warnings_of(capsys, parse, words, tmp_path / 'file')
        expected = f'warning: {flag} has no effect {reason}'
        assert sum(expected in line for line in lines) == 1, (words, lines)
        assert len([line for line in lines if f' {flag} ' in line.partition(' has no')[0] + ' ']) == 1, 'one warning'


@pytest.mark.parametrize('table, examples, parse', [
    (without_effect._TRAINING, TRAINING, parse_train_args),
    (without_effect._VALIDATION, VALIDATION, parse_validate_args)],
    ids=['train', 'validate'])
def test_each_row_of_the_table_has_an_example(table, examples, parse):
    for row in table:
        prefix = row.words.partition('{')[0]
        flags = {f"--{name.replace('_', '-')}" for name in row.names}
        assert any(flag in flags and reason.startswith(prefix) for _, flag, reason in examples), row


@pytest.mark.parametrize('table, parser', [(without_effect._TRAINING, train_parser()),
                                           (without_effect._VALIDATION, validate_parser())],
                         ids=['train', 'validate'])
def test_the_table_contains_only_options(table, parser):
    declared = {action.dest for action in parser._actions}
    assert all(name in declared for row in table for name in row.names)


@pytest.mark.parametrize('words', [
    '', '--aa 3a --color-jitter 0.3', '--aa imagenet --color-jitter 0.3', '--aa original',
    '--aa original --color-jitter 0', '--warmup-epochs 0',
    '--warmup-epochs 0 --warmup-lr 0', '--sched none --warmup-epochs 0',
    '--sched none --warmup-epochs 3 --warmup-prefix',
    '--cutmix 1 --mixup 0.2 --mixup-switch-prob 0.2 --mixup-prob 0.5 --mixup-mode pair --mixup-off-epoch 3',
    '--cutmix-minmax 0.2 0.8 --mixup 0.2 --mixup-switch-prob 0.3', '--reprob 0.2 --remode const --resplit',
    '--split-bn --resplit', '--sched plateau --patience-epochs 3 --min-lr 0.001 --decay-rate 0.5',
    '--sched multistep --decay-milestones 3 5 --decay-rate 0.2', '--sched poly --decay-rate 2 --lr-k-decay 0.5',
    '--sched step --decay-epochs 2.4 --decay-rate 0.97', '--sched rsqrt --lr-stable-timescale 3 --decay-epochs 30',
    '--lr-cycle-limit 3 --lr-cycle-mul 2 --lr-cycle-decay 0.3', f'{MULTILABEL} --multilabel-threshold 0.3',
    f'{MULTILABEL} --val-split=', f'{MULTILABEL} --loss asl --asl-clip 0.1', '--loss asl --asl-gamma-neg 3',
    '--bce-loss --bce-sum --bce-target-thresh 0.2 --bce-pos-weight 2', f'{MULTILABEL} --bce-sum',
    f'{MULTILABEL} --loss asl --bce-pos-weight 2', '--loss poly --poly-epsilon 1',
    '--loss asl --asl-gamma-pos 2 --smoothing 0',
    '--agmax --init-std 0.2 --head-init-scale 0.1', '--agmax --agmax-divergence-weight 2',
    '--model-ema --model-ema-decay 0.9', '--amp --amp-dtype bfloat16',
    '--kd-model-name x --kd-distill-type token --kd-temperature 2', '--lr-base 0.5 --lr-base-size 512',
    '--kd-model-name x --kd-distill-type feature --kd-student-feature-dim 3', '--train-crop-mode rkrc --scale 0.5 1',
    '--epochs 5 --sched multistep --decay-milestones 3 9', '--torchscript --fuser te',
    '--train-img-sizes 24 32 --train-size-schedule progressive --train-size-schedule-spread 0.2',
])
def test_options_with_an_effect_do_not_warn(capsys, tmp_path, words):
    assert warnings_of(capsys, parse_train_args, words, tmp_path) == []


def test_a_file_of_all_options_gives_the_warnings_of_its_run(capsys, tmp_path):
    path = tmp_path / 'args.yaml'
    for words, count in (('', 0), ('--mixup 0.2 --mixup-prob 0.5', 0), ('--mixup-prob 0.5', 1), (MULTILABEL, 0)):
        args = parse_train_args(['data', *words.split()])
        assert capsys.readouterr().err.count('warning') == count
        path.write_text(yaml.safe_dump(values(args)))
        parse_train_args(['-c', str(path)])
        assert capsys.readouterr().err.count('warning') == count


def test_a_folder_that_is_not_read_warns(capsys):
    """timm's train.py prefers --data-dir, its validate.py prefers DIR."""
    for parse, read, words in ((parse_train_args, 'b', "'a' has no effect with --data-dir 'b'"),
                               (parse_validate_args, 'a', "--data-dir 'b' has no effect with 'a'")):
        assert parse(['a', '--data-dir', 'b']).data_dir == read
        assert words in capsys.readouterr().err
        assert parse(['a']).data_dir == parse(['--data-dir', 'a']).data_dir == 'a'
        parse(['a', '--data-dir', 'a'])
        assert capsys.readouterr().err == ''


# ---- The table against timm ----

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none')
# A value of each option of schedules under which something would change, and what else makes it visible.
CHANGED = {
    'lr_cycle_limit': 2, 'lr_cycle_mul': 2., 'lr_cycle_decay': 0.2, 'lr_k_decay': 2., 'lr_decay_fn': 'exp',
    'lr_stable_timescale': 7., 'min_lr': 0.2, 'cooldown_epochs': 3, 'patience_epochs': 1, 'decay_milestones': [4, 9],
    'decay_epochs': 5., 'decay_rate': 0.3, 'warmup_lr': 0.05, 'warmup_epochs': 3, 'warmup_prefix': True,
    'lr_noise': [0.2, 0.9],
}
VISIBLE = dict(epochs=12, lr=1., warmup_epochs=2, decay_milestones=[3], decay_epochs=3., patience_epochs=3)


def rates(sched, **given):
    """Learning rate of each epoch of a run whose metric does not improve."""
    args = options(sched=sched, **{**VISIBLE, **given})
    optimizer = create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], 'sgd', lr=args.lr)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args, decreasing_metric=True))
    found = [optimizer.param_groups[0]['lr']]
    for epoch in range(epochs):
        if scheduler is not None:
            scheduler.step(epoch + 1, 1.)
        found.append(optimizer.param_groups[0]['lr'])
    return found


@pytest.mark.parametrize('sched', SCHEDULES)
def test_the_table_agrees_with_the_effects_of_options_of_schedules(sched):
    cycles = dict(lr_cycle_limit=2) if sched in ('cosine', 'tanh', 'poly') else {}
    for name, value in CHANGED.items():
        base = {} if name == 'lr_cycle_limit' else cycles
        said = is_idle(options(sched=sched, **{**VISIBLE, **base, name: value}), name)
        assert said == (rates(sched, **base) == rates(sched, **base, **{name: value})), name


@pytest.mark.parametrize('name', ['lr_cycle_mul', 'lr_cycle_decay'])
def test_options_of_cycles_have_no_effect_on_one_cycle(name):
    assert rates('cosine') == rates('cosine', **{name: CHANGED[name]})


@pytest.mark.parametrize('aa, effect', [(None, True), ('3a', True), ('original', False), ('rand-m9', False),
                                        ('augmix-m3', False)])
def test_the_table_agrees_with_the_effects_of_colour_jitter(aa, effect):
    def transform(**given):
        return repr(create_transform(32, is_training=True, auto_augment=aa, **given))
    for given in (dict(color_jitter=0.9), dict(color_jitter_prob=0.2)):
        assert (transform(**given) != transform()) is effect is (not is_idle(options(aa=aa, **given), *given))


OF_LOSSES = {
    'asl_gamma_pos': 3., 'asl_gamma_neg': 2., 'asl_clip': 0.2, 'poly_epsilon': 1.5,
    'poly_gamma': 3., 'poly_alpha': 0.3, 'twoway_tp': 2., 'twoway_tn': 2., 'db_neg_scale': 3.,
    'db_init_bias': 0.2, 'db_focal_gamma': 1., 'bce_sum': True, 'bce_pos_weight': 2.,
}


@pytest.mark.parametrize('task, losses', [
    ('classification', ('ce', 'bce', 'asl', 'poly')), ('multilabel', ('bce', 'asl', 'poly', 'twoway', 'zlpr', 'db'))])
def test_the_table_agrees_with_the_effects_of_options_of_losses(tmp_path, task, losses):
    stats = tmp_path / 'stats.json'
    stats.write_text('{"pos_counts": [3, 4, 5], "num_samples": 9}')
    logits = torch.tensor([[2., -1., 0.5], [0.1, 0.7, -2.]])
    target = torch.tensor([0, 2]) if task == 'classification' else torch.tensor([[1., 0., 1.], [0., 1., 0.]])
    def loss_of(args):
        return build_criterion(args)(logits, target).item()

    for loss, smoothing in product(losses, (0., 0.1)):
        if smoothing and loss in ('twoway', 'zlpr'):
            continue
        given = dict(task=task, num_classes=3, loss=loss, smoothing=smoothing)
        given['class_stats'] = str(stats) if loss == 'db' else ''
        for name, value in OF_LOSSES.items():
            if name in ('poly_gamma', 'poly_alpha') and (task, loss) == ('classification', 'poly'):
                continue  # refused by timm
            args = options(**given, **{name: value})
            same = math.isclose(loss_of(args), loss_of(options(**given)), rel_tol=1e-6)
            assert is_idle(args, name) == same, (loss, smoothing, name)


@pytest.mark.parametrize('opt, taken', [('sgd', True), ('adamw', False), ('rmsprop', True), ('lion', False),
                                        ('lookahead_adam', False), ('muon', True)])
def test_momentum_warns_for_optimizers_without_it(caplog, opt, taken):
    timm_names.check_optimizer(parse_train_args(['data', '--opt', opt, '--momentum', '0.8']))
    assert (f"--momentum has no effect: --opt '{opt}' has none" not in caplog.text) is taken
    caplog.clear()
    timm_names.check_optimizer(parse_train_args(['data', '--opt', opt]))
    assert not caplog.records


# ---- What only a run knows ----

def surprises(words, updates_per_epoch=10, epochs=5, evaluations=5, lr=0.1, distributed=False):
    args = parse_train_args(['data', '--epochs', str(epochs), '--warmup-epochs', '0', *words.split()])
    args = replace(args, lr=lr)
    return list(surprises_of_run(args, updates_per_epoch, epochs, evaluations, distributed))


@pytest.mark.parametrize('words, line', [
    ('--warmup-epochs 5', '--warmup-epochs 5 is all of --epochs 5: the learning rate only rises, as in timm. Reduce '
     '--warmup-epochs'),
    ('--min-lr 0.2', '--min-lr 0.2 is above the learning rate of 0.1, which never falls. Reduce --min-lr'),
    ('--warmup-lr 0.2 --warmup-epochs 1', '--warmup-lr 0.2 is above the learning rate of 0.1: warm-up lowers it. '
     'Reduce --warmup-lr'),
    ('--mixup 1 --mixup-off-epoch 5', '--mixup-off-epoch 5 has no effect: the run has 5 epochs'),
    ('--save-epochs 2 6 7', '--save-epochs 6 7 has no effect: the run has 5 epochs'),
    ('--early-stop 5', '--early-stop 5 has no effect: the run has 5 evaluations'),
    ('--loss-class-weight inv_freq --class-stats auto --balanced-sampling',
     "--loss-class-weight 'inv_freq' and --balanced-sampling each favour rare classes"),
    ('--sync-bn', '--sync-bn has no effect with one process'),
    ('--no-ddp-bb', '--no-ddp-bb has no effect with one process'),
])
def test_options_without_effect_in_this_run_warn(words, line):
    found, = surprises(words)
    assert found.startswith(line)


@pytest.mark.parametrize('words', [
    '', '--min-lr 0.1', '--min-lr 0.2 --sched step', '--warmup-lr 0.1 --warmup-epochs 1', '--mixup-off-epoch 4',
    '--save-epochs 5', '--early-stop 4', '--model-ema --model-ema-decay 0.9', '--model-ema --model-ema-warmup',
    '--warmup-epochs 4', '--loss-class-weight inv_freq --class-stats auto', '--balanced-sampling',
    '--loss-class-weight 1,2,3 --balanced-sampling',
])
def test_options_with_an_effect_in_this_run_do_not_warn(words):
    assert surprises(words) == []
    assert surprises('--sync-bn --no-ddp-bb', distributed=True) == []


@pytest.mark.parametrize('decay, updates, share, other', [(0.9998, 500, 91, 0.9908), (0.9998, 5000, 37, 0.99907),
                                                          (0.999, 2000, 14, 0.9976), (0.99, 10, 91, 0.59)])
def test_an_average_that_is_too_slow_warns(decay, updates, share, other):
    line, = surprises(f'--model-ema --model-ema-decay {decay}', updates_per_epoch=updates // 5)
    assert line.startswith(f'--model-ema-decay {decay:g} is slow for {updates} updates: {share}%')
    assert f'Use {other:g}, or --model-ema-warmup' in line
    assert other ** (updates - 1) <= 0.01
    assert surprises(f'--model-ema --model-ema-decay {other}', updates_per_epoch=updates // 5) == []


def test_timm_weights_the_first_average_with_powers_of_the_decay():
    from timm.utils import ModelEmaV3
    model = torch.nn.Linear(1, 1, bias=False).double()
    ema = ModelEmaV3(model, decay=0.9)
    for update in range(1, 21):
        torch.nn.init.constant_(model.weight, float(update == 1))
        ema.update(model, step=update)
    assert math.isclose(ema.module.weight.item(), 0.9 ** 19, rel_tol=1e-9)
