"""Options: priority, types, and one line for every mistake."""
import shlex
from dataclasses import FrozenInstanceError, fields

import pytest
import yaml
from timm.loss import LOSS_TYPES, create_classification_loss

from agmax_timm.assembly.objective import build_criterion
from agmax_timm.options.changed_options import train_command
from agmax_timm.options.declare import EVALUATION, RECIPE, RESUME, declared, problems, values
from agmax_timm.options.derived import loss_name
from agmax_timm.options.former_names import FORMER
from agmax_timm.options.parse import given_options, parse_train_args, parse_validate_args
from agmax_timm.options.parsers import TrainOptions, ValidateOptions, train_parser, validate_parser


@pytest.fixture
def config(tmp_path):
    """Function: write lines to a YAML file and return its path."""
    def write(text, name='config.yaml'):
        path = tmp_path / name
        path.write_text(text)
        return str(path)
    return write


def error_of(capsys, *argv):
    with pytest.raises(SystemExit) as exit_info:
        parse_train_args(['data', *argv])
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message.count('\n') == 1, f'more than one line: {message}'
    return message


def test_later_files_override_earlier_ones_and_flags_override_files(config):
    first = config('lr: 0.1\nepochs: 10\nmixup: 0.2', 'first.yaml')
    second = config('epochs: 20\nmixup: 0.4', 'second.yaml')
    args = parse_train_args(['data', '-c', first, '--mixup', '0.8', '--config', second])
    assert (args.lr, args.epochs, args.mixup, args.opt) == (0.1, 20, 0.8, 'sgd')


def test_a_later_file_can_reset_an_option(config):
    files = ['-c', config('aa: original\nlr: 0.5', 'first.yaml'), '-c', config('aa: null\nlr: null', 'second.yaml')]
    args = parse_train_args(['data', *files])
    assert args.aa is None and args.lr is None


def test_data_dir_overrides_the_positional_argument():
    assert parse_train_args(['a', '--data-dir', 'b']).data_dir == 'b'
    assert parse_train_args(['a']).data_dir == 'a'


@pytest.mark.parametrize('flags', [['new'], ['--data-dir', 'new']])
@pytest.mark.parametrize('text', ['data: old', 'data_dir: old', 'data: old\ndata_dir: old'])
def test_the_data_of_the_command_line_overrides_that_of_a_file(config, capsys, flags, text):
    path = config(text)
    assert parse_train_args(['-c', path]).data_dir == 'old'
    assert parse_train_args([*flags, '-c', path]).data_dir == 'new'
    later = ['-c', config(f"{'data_dir' if len(flags) == 2 else 'data'}: new", 'later.yaml')]
    assert parse_train_args(['-c', path, *later]).data_dir == 'new'
    assert not capsys.readouterr().err


def test_nested_numbers_of_a_file_are_those_of_the_command_line(config):
    path = config('opt_kwargs: {eps: 1e-8, betas: [9E-1, 2.e+0], name: rand-1e-8, inner: {x: -1e3}, n: 1e8x}')
    words = ['eps=1e-8', 'betas=[9E-1, 2.e+0]', 'name=rand-1e-8', "inner={'x': -1e3}", 'n=1e8x']
    kwargs = parse_train_args(['data', '-c', path]).opt_kwargs
    assert kwargs == parse_train_args(['data', '--opt-kwargs', *words]).opt_kwargs
    assert kwargs == {'eps': 1e-8, 'betas': [0.9, 2.], 'name': 'rand-1e-8', 'inner': {'x': -1000.}, 'n': '1e8x'}
    assert parse_train_args(['data', '-c', config('experiment: 1e-3')]).experiment == '1e-3'


def test_yaml_values_have_the_types_of_their_flags(config):
    path = config("lr: 3e-4\nimg-size: 32\nmean: [0.5, 0.5, 0.5]\nagmax: true\nmodel_kwargs: {depth: 2}\naa: null\n")
    args = parse_train_args(['data', '-c', path])
    assert args.lr == 3e-4 and args.img_size == 32 and args.agmax is True
    assert args.mean == [0.5] * 3 and args.model_kwargs == {'depth': 2} and args.aa is None


def test_an_empty_file_changes_nothing(config):
    assert values(parse_train_args(['data', '-c', config(''),])) == values(parse_train_args(['data']))


def test_options_written_as_yaml_give_the_same_options(config):
    args = parse_train_args(['data', '--agmax', '--mean', '0.1', '0.2', '0.3', '--opt-kwargs', 'nesterov=False'])
    path = config(yaml.safe_dump(values(args)))
    assert values(parse_train_args(['-c', path])) == values(args)


@pytest.mark.parametrize('text, words', [
    ('bach_size: 32', ['bach_size', 'did you mean batch_size']),
    ('epochs: many', ['epochs', "'many'", 'int']),
    ('epochs: 1.5', ['epochs', '1.5']),
    ('recovery_interval: 0.9', ['recovery_interval', 'interval', '0.9']),
    ('recovery_interval: 1e2s3', ['recovery_interval', "'1e2s3'"]),
    ('freeze: [conv1]\nlinear_probe: true', ['--freeze cannot be combined with --linear-probe: drop one']),
    ('torchscript: true\ntorchcompile: eager', ['--torchscript cannot be combined with --torchcompile']),
    ('agmax: 1', ['agmax', 'true or false']),
    ('agmax_loss: huber', ['agmax_loss', 'huber', 'mi, mse, kl, ce']),
    ('mean: 0.5', ['mean', 'list']),
    ('aa: [a]', ['aa', "['a']"]),
    ('val_split: .nan', ['val_split', 'a share above 0 and below 1', "'nan'"]),
    ('image_memory: 16', ['image_memory', 'a share in [0, 1]', "'16'"]),
    ('- a\n- b', ['list']),
    ('a: b: c', ['config.yaml']),
])
def test_invalid_files_are_refused_in_one_line(config, capsys, text, words):
    message = error_of(capsys, '-c', config(text))
    assert all(word in message for word in words), message


@pytest.mark.parametrize('text, split', [
    ('val_split: 0.1', '0.1'), ("val_split: '0.1'", '0.1'), ("val_split: '.10'", '0.1'), ("val_split: ''", '')])
def test_a_share_may_be_a_number_or_text(config, text, split):
    assert parse_train_args(['data', '-c', config(text)]).val_split == split


def test_a_missing_file_is_refused_in_one_line(capsys):
    assert 'nowhere.yaml' in error_of(capsys, '-c', 'nowhere.yaml')


@pytest.mark.parametrize('argv, words', [
    ('--mixup 0.2 -b 7', ['--mixup', '--batch-size 7', '6 or 8']),
    ('--cutmix 1 -b 1 --agmax', ['--cutmix', '--batch-size 1']),
    ('--cutmix-minmax 0.2', ['--cutmix-minmax', 'two values']),
    ('--mixup-mode half', ['--mixup-mode', 'half', 'batch, pair, elem']),
    ('--mixup -1', ['--mixup', '-1']),
    ('--mixup-prob 1.5', ['--mixup-prob', '1.5']),
    ('--batch-size 0', ['--batch-size', '0']),
    ('--epochs 0', ['--epochs', '0']),
    ('--smoothing 2', ['--smoothing', '2']),
    ('--sched nosuch', ['--sched must be one of cosine, ', "got 'nosuch'"]),
    ('--train-crop-mode middle', ['--train-crop-mode', 'middle', 'pad']),
    ('--no-aug --cutout 8', ['--no-aug', '--cutout']),
    ('--amp --model-dtype bfloat16', ['--amp', '--model-dtype bfloat16']),
    ('--agmax-weight 2', ['--agmax-weight', '--agmax']),
    ('--agmax --agmax-loss kl --agmax-units 8', ['--agmax-units', 'kl']),
    ('--agmax --agmax-loss ce --agmax-marginal-images 8', ['--agmax-marginal-images', 'ce has no']),
    ('--agmax --agmax-loss mse --agmax-divergence-reduction sum', ['--agmax-divergence-reduction', 'mse has no']),
    ('--agmax --agmax-marginal-images 1', ['--agmax-marginal-images must be 2 or more, got 1']),
    ('--agmax-marginal-images 8', ['--agmax-marginal-images needs --agmax']),
    ('--agmax --naflex-loader --agmax-marginal-images 8', ['--agmax-marginal-images', '--naflex-loader']),
    ('--agmax --agmax-units 0', ['--agmax-units', '0']),
    ('--agmax --agmax-init-std 0.2 --pretrained', ['--init-std draws new weights over those of --pretrained']),
    ('--init-std 0.2 --initial-checkpoint setup.cfg', ['--init-std draws', 'over those of --initial']),
    ('--init-std 0', ['--init-std must be above 0, got 0']),
    ('--agmax --resplit', ['--resplit', '--agmax']),
    ('--agmax --no-aug --mixup 0.2 --mixup-off-epoch 5', ['--no-aug', 'mix the views in all epochs']),
    ('--agmax-loss huber', ['--agmax-loss', 'huber']),
    ('--aug-splits 1', ['--aug-splits', '1']),
    ('--aug-splits 2 --no-prefetcher', ['--aug-splits', '--no-prefetcher']),
    ('--aug-splits 2 --mixup 0.2', ['--aug-splits', '--mixup']),
    ('--aug-splits 2 --cutout 8', ['--aug-splits', '--cutout']),
    ('--jsd-loss', ['--jsd-loss', '--aug-splits']),
    ('--bce-loss --loss poly', ['--bce-loss', '--loss poly']),
    ('--loss asl --mixup 0.2', ['--mixup gives soft targets', '--loss asl']),
    ('--loss asl --cutmix-minmax 0.2 0.8', ['--cutmix-minmax gives soft targets', '--loss asl']),
    ('--loss zlpr', ['--loss zlpr', '--task classification', 'ce, bce, asl, poly, jsd']),
    ('--loss poly --loss-class-weight inv_freq', ["--loss-class-weight 'inv_freq' is not for --loss poly"]),
    ('--loss-pos-weight 2', ["--loss-pos-weight '2' is not for --loss ce", 'use --loss bce']),
    ('--loss poly --poly-gamma 1', ['--poly-gamma is for --task multilabel']),
    ('--loss poly --poly-alpha 0', ['--poly-alpha is for --task multilabel']),
    ('--split-bn', ['--split-bn', '--aug-splits']),
    ('--split-bn --resplit --sync-bn', ['--split-bn', '--sync-bn']),
    ('--train-img-sizes 24 32 --train-batch-sizes 8', ['--train-batch-sizes', '2 --train-img-sizes', 'got 1']),
    ('--train-img-sizes 24 0', ['--train-img-sizes', '0']),
    ('--train-img-sizes 24 --train-size-schedule progressive', ['progressive', '--train-img-sizes']),
    ('--train-img-sizes 24 32 --train-size-probs 0 0', ['--train-size-probs']),
    ('--train-img-sizes 24 32 --train-batch-sizes 7 8 --mixup 1', ['--mixup', '--train-batch-sizes 7', '6 or 8']),
    ('--train-img-sizes 24 --use-multi-epochs-loader', ['--use-multi-epochs-loader', '--train-img-sizes']),
    ('--train-img-sizes 24 --dataset wds/x', ['--train-img-sizes', 'wds/x']),
    ('--naflex-loader --train-img-sizes 24', ['--naflex-loader', '--train-img-sizes']),
    ('--naflex-loader --cutmix-minmax 0.2 0.8', ['--naflex-loader', '--cutmix-minmax']),
    ('--naflex-loader --mixup-mode elem', ['--naflex-loader', '--mixup-mode']),
    ('--naflex-loader --kd-model-name x', ['--naflex-loader', '--kd-model-name']),
    ('--naflex-loader --naflex-patch-sizes 8 16 --naflex-patch-size-probs 1', ['--naflex-patch-size-probs', 'got 1']),
    ('--torchscript --torchcompile', ['--torchscript', '--torchcompile']),
    ('--torchscript --sync-bn', ['--torchscript', '--sync-bn']),
    ('--torchscript --kd-model-name x', ['--torchscript', '--kd-model-name']),
    ('--fuser fast', ['--fuser', 'fast']),
    ('--tta 2', ['--tta 2', 'different images', 'drop it']),
    ('--kd-model-name x --kd-loss-type mse', ['--kd-loss-type', 'mse']),
    ('--kd-model-name x --kd-temperature 0', ['--kd-temperature', '0']),
    ('--task multilabel --dataset hfds/x', ['--task multilabel', '--num-classes']),
    ('--task multilabel --num-classes 3', ['--task multilabel', 'hfds/']),
    ('--task multilabel --num-classes 3 --dataset hfds/x --eval-metric top1', ['--eval-metric', 'top1', 'map']),
    ('--multilabel-threshold 1', ['--multilabel-threshold', 'above 0 and below 1', '1.0']),
    ('--target-format multihot', ['--target-format', '--task multilabel']),
    ('--eval-metric map', ['--eval-metric', 'map']),
    ('--resume auto', ['--resume auto', '--experiment']),
    ('--stop-epoch 0', ['--stop-epoch', '0']),
    ('--save-epochs 0', ['--save-epochs', '0']),
    ('--log-wandb --wandb-resume-id x', ["--wandb-resume-id 'x", '--resume']),
    ('--model-kwargs depth', ['--model-kwargs', 'KEY=VALUE', 'depth']),
    ('--no-such-flag', ['--no-such-flag']),
])
def test_invalid_flags_are_refused_in_one_line(capsys, argv, words):
    message = error_of(capsys, *argv.split())
    assert all(word in message for word in words), message


@pytest.mark.parametrize('argv, words', [
    ('--train-batches-per-epoch 9', '--train-batches-per-epoch has no effect without --train-img-sizes'),
    ('--naflex-loss-scale none', '--naflex-loss-scale has no effect without --naflex-loader'),
    ('--kd-temperature 2', '--kd-temperature has no effect without --kd-model-name'),
    ('--wandb-project x', '--wandb-project has no effect without --log-wandb'),
    ('--pretrained-path x', '--pretrained-path has no effect without --pretrained'),
    ('--drop-connect 0.1', '--drop-connect has no effect with any model of timm: use --drop-path'),
])
def test_options_without_the_one_they_need_warn(capsys, monkeypatch, argv, words):
    parse_train_args(['data', *argv.split()])
    assert words in capsys.readouterr().err
    monkeypatch.setenv('RANK', '1')
    parse_train_args(['data', *argv.split()])
    assert not capsys.readouterr().err, 'only the first rank warns'


SEVERAL = ['--task', 'multilabel', '--num-classes', '3', '--dataset', 'hfds/x']


@pytest.mark.parametrize('argv, words', [
    ('--loss twoway --mixup 0.5', ['--mixup gives soft targets', '--loss twoway', 'or use --loss bce']),
    ('--loss zlpr --cutmix 0.5', ['--cutmix gives soft targets', '--loss zlpr']),
    ('--loss twoway --smoothing 0.1', ['--smoothing gives soft targets', '--loss twoway']),
    ('--loss ce', ['--loss ce', '--task multilabel', 'bce, asl, poly, twoway, zlpr, db']),
    ('--loss db', ['--loss db', '--class-stats']),
])
def test_losses_of_several_labels_are_refused_with_soft_targets(capsys, argv, words):
    message = error_of(capsys, *SEVERAL, *argv.split())
    assert all(word in message for word in words), message


@pytest.mark.parametrize('task', ['classification', 'multilabel'])
@pytest.mark.parametrize('soft', [dict(mixup=0.5), dict(cutmix=1.), dict(smoothing=0.1), {}], ids=str)
def test_losses_are_refused_if_timm_refuses_them(capsys, tmp_path, task, soft):
    stats = tmp_path / 'stats.json'
    stats.write_text('{"pos_counts": [3, 4, 5], "num_samples": 9}')
    argv = SEVERAL if task == 'multilabel' else ['--num-classes', '3']
    soft = {'smoothing': 0., **soft}
    for loss in LOSS_TYPES:
        counts = dict(class_counts=[3, 4, 5], num_samples=9) if loss == 'db' else {}
        mixed = 'mixup' in soft or 'cutmix' in soft
        splits = 0 if mixed else 2  # mixing excludes them
        try:
            create_classification_loss(
                loss, task == 'multilabel', soft['smoothing'], mixed, jsd_splits=splits, **counts)
            taken = True
        except ValueError:
            taken = False
        words = [word for name, value in soft.items() for word in (f'--{name}', str(value))]
        words += ['--aug-splits', '2'] if loss == 'jsd' and not mixed else []
        words += ['--class-stats', str(stats)] if loss == 'db' else []
        if taken:
            parse_train_args(['data', *argv, '--loss', loss, *words])
        else:
            error_of(capsys, *argv, '--loss', loss, *words)


def test_flags_of_losses_set_the_name_of_the_loss():
    for flags, name in (([], 'ce'), (['--bce-loss'], 'bce'), (['--jsd-loss', '--aug-splits', '3'], 'jsd'),
                        (['--loss', 'asl'], 'asl'), (SEVERAL, 'bce'), ([*SEVERAL, '--loss', 'asl'], 'asl')):
        assert loss_name(parse_train_args(['data', *flags])) == name
    several = ['data', *SEVERAL]
    assert vars(parse_train_args(several)).items() >= dict(eval_metric='map', smoothing=0.).items()
    assert parse_train_args([*several, '--smoothing', '0.1']).smoothing == 0.1


@pytest.mark.parametrize('text, flags, expected', [
    ('', [], ('bce', 2.)), ('bce_loss: false', [], ('ce', None)), ('loss: poly\nbce_loss: false', [], ('poly', None)),
    ('', ['--bce-pos-weight', '3'], ('bce', 3.)), ('', ['--loss-pos-weight', '4'], ('bce', 4.)),
])
def test_a_file_of_all_options_can_be_overridden_in_the_loss(config, text, flags, expected):
    """args.yaml has the options that the user gave, not the loss that follows from them."""
    first = parse_train_args(['data', '--num-classes', '2', '--bce-loss', '--bce-pos-weight', '2'])
    options = parse_train_args(['-c', config(yaml.safe_dump(values(first))), '-c', config(text, 'later.yaml'), *flags])
    weight = getattr(build_criterion(options), 'pos_weight', None)
    assert (loss_name(options), weight if weight is None else weight.item()) == expected


@pytest.mark.parametrize('argv, text, smoothing', [
    ([], '', 0.1),
    (['--agmax'], '', 0.),
    (['--agmax', '--smoothing', '0.1'], '', 0.1),
    (['--smoothing', '0.2'], 'agmax: true', 0.2),
    (['--agmax'], 'smoothing: 0.1', 0.1),
    ([], 'agmax: true\nsmoothing: 0.2', 0.2),
])
def test_agmax_smooths_labels_only_on_request(config, argv, text, smoothing):
    options = parse_train_args(['data', *argv, '-c', config(text)])
    assert options.smoothing == smoothing
    command = shlex.split(train_command(values(options)))
    assert command[:2] == ['python', 'train.py'] and parse_train_args(command[2:]).smoothing == smoothing
    assert ('--smoothing' in command) == (smoothing != (0. if options.agmax else 0.1))


def test_given_options_are_distinguished_from_defaults():
    argv = ['data', '--img-size', '32', '--use-ema']
    assert given_options(validate_parser(), argv) == {'data': 'data', 'img_size': 32, 'use_ema': True}
    assert parse_validate_args(argv).given == {'data', 'img_size', 'use_ema'}


@pytest.mark.parametrize('parser', [train_parser(), validate_parser()], ids=['train', 'validate'])
def test_every_flag_has_a_help_text(parser):
    assert [action.option_strings for action in parser._actions if not action.help] == []


def test_abbreviated_flags_are_accepted():
    assert parse_train_args(['data', '--model-ema-d', '0.5']).model_ema_decay == 0.5


@pytest.mark.parametrize('options', [TrainOptions, ValidateOptions])
def test_the_declaration_of_every_option_is_complete(options):
    known = declared(options)
    for name, option in known.items():
        assert option.help and option.help[-1] != '.', name
        assert option.metavar or option.choices or option.kind is bool or option.check or name == 'device', name
        assert option.check or option.convert or option.kind not in (int, float), f'{name}: a number without a check'
        assert option.resume in RESUME and option.recipe in RECIPE and option.evaluation in EVALUATION, name
        assert option.affects_result or option.resume in ('ignored', 'logged'), name
        for other, *valid in map(str.split, (*option.needs, *option.unless)):
            needed = declared(TrainOptions if other not in known else options)[other]
            assert set(valid) <= {*(needed.choices or ()), *(needed.check and needed.check.names or ())}, name
        assert not {*option.synonyms, *option.former} & {*known}, name
        assert not list(problems(options(**{name: option.default}))), f'{name}: its default is refused'
    assert {field.name for field in fields(options)} - {'given'} == set(known)


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        parse_train_args(['data']).lr = 1.


@pytest.mark.parametrize('argv, words', [
    ('--lr nan', ['--lr', 'nan']), ('--weight-decay inf', ['--weight-decay', 'inf']),
    ('--lr 1e308', ['--lr', 'at most']), ('--recovery-interval -1', ['--recovery-interval', '-1']),
    ('--recovery-interval 0s', ['--recovery-interval', '0s']), ('--seed -1', ['--seed', '-1']),
    ('--input-size 3 0 32', ['--input-size', '0']), ('--max-damaged 2', ['--max-damaged', '2']),
    ('--scale 1 0.1', ['--scale']), ('--remode blue', ['--remode', 'blue']), ('--experiment ../x', ['--experiment']),
    ('--resume nowhere.pth.tar', ['nowhere.pth.tar']), ('--dataset nosuch/x', ["--dataset 'nosuch/x"]),
    ('--crop-pct 0.001', ['--crop-pct', '0.001']), ('--nan-policy go', ['--nan-policy', 'go']),
    ('--hang-timeout -1', ['--hang-timeout', '-1']), ('--opt=--', ['--opt']),
    ('--val-split nan', ['--val-split', 'a share above 0 and below 1', "'nan'"]),
    ('--val-split=-inf', ['--val-split', "'-inf'"]),
])
def test_invalid_values_are_refused_in_one_line(capsys, argv, words):
    message = error_of(capsys, *argv.split())
    assert all(word in message for word in words), message


def test_a_repeated_key_is_refused_in_one_line(config, capsys):
    assert 'epochs' in error_of(capsys, '-c', config('epochs: 3\nlr: 0.1\nepochs: 4'))


def test_a_file_may_contain_the_second_name_of_an_option(config, capsys):
    assert parse_train_args(['data', '-c', config('agmax-init-std: 0.2')]).init_std == 0.2
    assert parse_train_args(['data', '-c', config('agmax_init_std: null')]).init_std is None
    assert not capsys.readouterr().err
    message = error_of(capsys, '-c', config('agmax_init_std: 0.2\ninit_std: 0.3'))
    assert "init_std' occurs twice" in message
    assert "unknown option 'b'" in error_of(capsys, '-c', config('b: 2'))


def test_recovery_intervals_are_updates_or_seconds(config):
    assert parse_train_args(['data', '--recovery-interval', '7']).recovery_interval == 7
    assert parse_train_args(['data', '-c', config('recovery_interval: 600s')]).recovery_interval == '600s'
    assert parse_train_args(['data', '-c', config('recovery_interval: 7.0')]).recovery_interval == 7


@pytest.mark.parametrize('text, options, words', [
    ('native_amp: true', dict(amp=True), 'read as amp: True'),
    ('apex-amp: true', dict(amp=True), 'read as amp: True'),
    ('native_amp: false\namp: true', dict(amp=True), 'False has no effect: today it is --amp'),
    ('native_amp: true\namp: false', dict(amp=False), 'True has no effect'),
    ('amp_impl: native', dict(amp=False), "'native' has no effect: today it is --amp"),
    ('jsd: true\naug_splits: 3', dict(jsd_loss=True), 'read as jsd_loss'),
    ('jsd: false', dict(jsd_loss=False), 'False has no effect: today it is --jsd-loss'),
    ('bn_tf: true\nbn_eps: 1e-4', dict(bn_momentum=0.01, bn_eps=1e-4), 'read as bn_momentum: 0.01'),
    ('milestones: [3, 5]\nsched: multistep', dict(decay_milestones=[3, 5]), 'read as decay_milestones: [3, 5]'),
    ('mixup_elem: true\nmixup: 0.2', dict(mixup_mode='elem'), "read as mixup_mode: 'elem'"),
    ('validation_batch_size_multiplier: 2', dict(validation_batch_size=None), '--validation-batch-size'),
    ('prefetcher: false', dict(no_prefetcher=True), 'read as no_prefetcher: True'),
    ('prefetcher: true', dict(no_prefetcher=False), 'True has no effect: today it is --no-prefetcher'),
    ('world_size: 8', {}, '8 has no effect: today it is torchrun --nproc-per-node'),
])
def test_former_options_of_timm_are_read_with_a_warning(config, capsys, text, options, words):
    path = config(text)
    args = parse_train_args(['data', '-c', path])
    assert vars(args).items() >= options.items()
    line, = capsys.readouterr().err.splitlines()
    assert f"warning: --config '{path}': " in line and text.partition(':')[0] in line and words in line


def test_former_options_refer_to_existing_options():
    declared = {action.dest for action in train_parser()._actions}
    for name, former in FORMER.items():
        assert name not in declared
        assert all(option in declared for value in (True, False, 3, None) for option in former.options(value))
        named = [word[2:].replace('-', '_') for word in former.today.replace(',', '').split() if word.startswith('--')]
        assert all(option in declared or option == 'nproc_per_node' for option in named)


def test_values_of_former_options_are_checked(config, capsys):
    with pytest.raises(SystemExit):
        parse_train_args(['data', '-c', config('iters_to_accum: many')])
    assert "grad_accum_steps': expected int, got 'many'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('flag, hint', [
    ('--ema', '--model-ema'), ('--fp16', '--amp'), ('--learning-rate', '--lr'), ('--optimizer', '--opt'),
    ('--wd', '--weight-decay'), ('--bs', '--batch-size'), ('--gpus', 'torchrun --nproc-per-node'),
    ('--name', '--experiment'), ('--native-amp', '--amp'), ('--bf16', '--amp-dtype bfloat16'),
    ('--bach-size', '--batch-size'),
])
def test_flags_of_other_programs_have_a_hint(capsys, flag, hint):
    assert f'unrecognized arguments: {flag}, did you mean {hint}?' in error_of(capsys, flag)


@pytest.mark.parametrize('flag, hint', [
    ('--ema', '--use-ema'), ('--gpus', '--num-gpu'), ('--weights', '--checkpoint'), ('--val-split=0.1', '--split')])
def test_hints_are_flags_of_the_command(capsys, flag, hint):
    with pytest.raises(SystemExit):
        parse_validate_args(['data', flag])
    assert f'did you mean {hint}?' in capsys.readouterr().err


@pytest.mark.parametrize('options, parser', [(TrainOptions, train_parser), (ValidateOptions, validate_parser)])
def test_every_synonym_suggests_its_option(options, parser):
    for name, option in declared(options).items():
        for word, _, value in (synonym.partition(' ') for synonym in option.synonyms):
            assert parser().did_you_mean(word) == f', did you mean {name} {value}'.rstrip() + '?'
            assert parser().did_you_mean(f"--{word.replace('_', '-')}").startswith(f', did you mean {option.flag}')


def test_options_of_other_programs_in_files_have_a_hint(config, capsys):
    assert "unknown option 'learning_rate', did you mean lr?" in error_of(capsys, '-c', config('learning_rate: 1'))
