"""Command lines and YAML files at random: one line and exit status 2, or options that mean what was said.

The generator reads the declared parsers, so a new flag is drawn with the others. The short form is part of the suite;
the long one takes numbers and a seed:

    AGMAX_FUZZ=5000 AGMAX_FUZZ_RUNS=300 AGMAX_FUZZ_SEED=7 pytest tests/options/test_options_fuzz.py

AGMAX_FUZZ counts command lines and files of each kind that are parsed, AGMAX_FUZZ_RUNS runs of training. Each case has
a seed of its own, AGMAX_FUZZ_SEED + its number, which the failure prints.
"""
import argparse
import csv
import json
import os
import random
import shlex
import signal
from contextlib import contextmanager

import pytest
import yaml

from agmax_timm.commands import train as train_cli
from agmax_timm.options.declare import values
from agmax_timm.options.key_values import KeyValues
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser, validate_parser

COUNT = int(os.environ.get('AGMAX_FUZZ', 100))
RUNS = int(os.environ.get('AGMAX_FUZZ_RUNS', 12))
SEED = int(os.environ.get('AGMAX_FUZZ_SEED', 0))

NUMBERS = ['0', '1', '-1', '2', '0.5', '1e-3', '1.5', '3', '-0.1', '1e-320', '7', '16', '100']
HOSTILE = ['nan', 'inf', '-inf', '1e400', '', ' ', '-', '--', 'é', '0x10', '1_0', '9' * 30, '9' * 5000, 'None', 'true',
           '{}', '1,2', 'a\nb', '../x', '/', '.', '\udcff', '%s', '-1e999', '٣', '2147483648', '1e18', 'a' * 300]
WORDS = ['rand-m9-mstd0.5', 'rand-mX', 'augmix-m3', 'avg', 'bicubic', 'random', 'pixel', 'cpu', 'cuda', 'adamw', 'norm',
         'RGB', 'L', 'linear', 'sqrt', 'mi', 'kl', 'test_vit', 'resnet50', 'inv_freq', 'neg_pos', 'best', 'x/y', 'step']
PAIRS = ['a=1', 'depth=2', 'a', '=1', 'a=', 'num_classes=5', 'lr=1', 'x=(1,2)', 'x=[1,[2]]', 'x=1j', 'x={1,2}',
         'x=b"1"', 'x=...', 'x=' + '(' * 300, 'x=' + '-' * 9000 + '1', 'betas=(0.9,0.95)', 'x={1:2}', 'é=1', 'eps=nan']


@contextmanager
def time_limit(seconds, case):
    """Turn a hang into a failure that states its case."""
    def stop(*_):
        raise AssertionError(f'no end after {seconds} s: {case}')
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flags_of(parser):
    return [action for action in parser._actions if action.option_strings and action.dest not in ('help', 'config')]


def word_for(action, draw):
    if isinstance(action, KeyValues):
        return draw.choice(PAIRS)
    kind = draw.random()
    if action.choices and kind < 0.7:
        return str(draw.choice(list(action.choices)))
    if kind < 0.75 and action.type in (int, float):
        return draw.choice(NUMBERS)
    return draw.choice(WORDS if kind < 0.85 else HOSTILE if kind < 0.95 else NUMBERS)


def words_for(action, draw):
    """The words after a flag. Usually their number is right."""
    if isinstance(action, argparse._StoreTrueAction):
        return ['x'] if draw.random() < 0.03 else []
    usual = {None: 1, 3: 3, '?': draw.randint(0, 1), '*': draw.randint(0, 3), '+': draw.randint(1, 3)}[action.nargs]
    count = usual if draw.random() < 0.9 else draw.randint(0, 4)
    return [word_for(action, draw) for _ in range(count)]


def command_line(parser, draw):
    argv = [] if draw.random() < 0.05 else ['data']
    for action in draw.choices(flags_of(parser), k=draw.choice([1, 1, 1, 2, 3, 6])):
        flag, words = draw.choice(action.option_strings), words_for(action, draw)
        if draw.random() < 0.05:
            flag = one_edit(flag, draw)
        if len(words) == 1 and draw.random() < 0.4:
            argv.append(f'{flag}={words[0]}')
        else:
            argv += [flag, *words]
    return argv


def one_edit(word, draw):
    """Insert, remove or change a letter after the dashes, or swap two."""
    start = len(word) - len(word.lstrip('-'))
    at, kind = draw.randrange(start, len(word)), draw.randrange(4)
    letter = draw.choice('abcdefghijklmnopqrstuvwxyz_')
    return {
        0: word[:at] + letter + word[at:],
        1: word[:at] + word[at + 1:],
        2: word[:at] + letter + word[at + 1:],
        3: word[:at] + word[at + 1:at + 2] + word[at:at + 1] + word[at + 2:],
    }[kind]


def is_one_edit(a, b):
    """Whether one_edit can turn a into b."""
    if abs(len(a) - len(b)) > 1:
        return False
    if len(a) == len(b):
        wrong = [i for i in range(len(a)) if a[i] != b[i]]
        return len(wrong) <= 1 or len(wrong) == 2 and wrong[1] == wrong[0] + 1 and (
            a[wrong[0]], a[wrong[1]]) == (b[wrong[1]], b[wrong[0]])
    short, long = sorted((a, b), key=len)
    return any(long[:i] + long[i + 1:] == short for i in range(len(long)))


def parsed(parse, argv, capsys):
    """The options, or None and the one line that refuses them."""
    capsys.readouterr()
    with time_limit(10, argv):
        try:
            args = parse(argv)
        except SystemExit as error:
            lines = capsys.readouterr().err.splitlines()
            errors = [line for line in lines if ': warning: ' not in line]
            assert error.code == 2 and len(errors) == 1 and ': error: ' in errors[0], (argv, error.code, lines)
            return None, errors[0]
    assert all(': warning: ' in line for line in capsys.readouterr().err.splitlines())
    return args, ''


def plain(value):
    """The value with lists in place of tuples, which YAML does not distinguish."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_argparse_means(parser, argv):
    """The values that argparse alone reads from a command line, by destination: an oracle for all later steps."""
    given = {}
    bare = argparse.ArgumentParser(add_help=False)
    for action in parser._actions:
        if isinstance(action, argparse._StoreTrueAction):
            bare.add_argument(*action.option_strings, dest=action.dest, action='store_true', default=argparse.SUPPRESS)
        elif action.option_strings and action.dest != 'help':
            kind = {} if isinstance(action, KeyValues) else dict(type=action.type, const=action.const)
            bare.add_argument(*action.option_strings, dest=action.dest, nargs=action.nargs,
                              default=argparse.SUPPRESS, **kind)
    bare.add_argument('data', nargs='?', default=argparse.SUPPRESS)
    given.update(vars(bare.parse_args(argv)))
    return given


@pytest.mark.slow
@pytest.mark.parametrize('make_parser, parse', [
    (train_parser, parse_train_args), (validate_parser, parse_validate_args)], ids=['train', 'validate'])
def test_random_command_lines_are_read_or_refused_in_one_line(make_parser, parse, capsys, tmp_path):
    parser, accepted = make_parser(), 0
    for number in range(SEED, SEED + COUNT):
        argv = command_line(parser, random.Random(number))
        args, message = parsed(parse, argv, capsys)
        if args is None:
            named = [word.partition('=')[0] for word in argv if word.startswith('-')]
            names = [flag for action in parser._actions for flag in action.option_strings
                     if set(action.option_strings) & set(named)]
            words = ('ambiguous option: ', 'unrecognized arguments: ')
            assert any(' '.join(word.split()) in message for word in [*named, *names, *words]), (number, argv, message)
            continue
        accepted += 1
        given = as_argparse_means(parser, argv)
        for dest, value in given.items():
            kept = getattr(args, dest)
            if isinstance(kept, dict):
                assert list(kept) == list(dict.fromkeys(word.partition('=')[0] for word in value if word)), argv
            elif dest == 'data_dir':  # train.py prefers it to DIR, validate.py prefers DIR
                preferred = value if parse is parse_train_args else given.get('data')
                assert kept == (preferred or value or given.get('data')), (number, argv)
            else:
                assert kept == value, (number, argv, dest)
        if parse is parse_train_args:
            path = tmp_path / 'args.yaml'
            path.write_text(yaml.safe_dump(values(args)))
            again, message = parsed(parse, ['-c', str(path)], capsys)
            assert again is not None and plain(values(again)) == plain(values(args)), (number, argv, message)
    assert accepted > COUNT / 10, 'too few command lines are accepted'


def yaml_value(action, draw):
    if draw.random() < 0.6:  # what may well be right
        words = words_for(action, draw)
        if isinstance(action, argparse._StoreTrueAction):
            return draw.choice(['true', 'false', 'yes', 'no', '"true"', '1', 'null'])
        if action.nargs in ('+', 3):
            return '[' + ', '.join(json.dumps(word) if draw.random() < 0.3 else word for word in words) + ']'
        return words[0] if words else ''
    return draw.choice(['null', 'true', '[]', '{}', '[1, [2, 3]]', '{a: 1}', '"16"', '16', '1.5', '.nan', '.inf', '-1',
                        '1e-3', '!!python/object:os.system x', '2001-99-99', '2001-01-01', '&a [*a]', '*b', '"a\\0b"',
                        '!!binary aGk=', '? x', '|', '- 1', '0o17', '0b11', '1:30', '{1: 2}', '=', '@', '\t1',
                        '!!set {a}'])


def yaml_text(parser, draw):
    lines = []
    for action in draw.choices(flags_of(parser), k=draw.choice([1, 1, 2, 5])):
        key = action.dest if draw.random() < 0.7 else action.dest.replace('_', '-')
        lines.append(f'{key}: {yaml_value(action, draw)}')
    if draw.random() < 0.1:
        lines.append(draw.choice([
            '1: 2', 'true: 1', '[a]: 1', '? {a: 1}', '---', 'x', '<<: {lr: 1}', '\ufeff', 'lr', '%', '\0']))
    return '\n'.join(lines)


@pytest.mark.slow
def test_random_yaml_files_are_read_or_refused_in_one_line(capsys, tmp_path):
    parser, path = train_parser(), tmp_path / 'options.yaml'
    for number in range(SEED, SEED + COUNT):
        text = yaml_text(parser, random.Random(number))
        path.write_text(text, errors='surrogateescape')
        args, message = parsed(parse_train_args, ['data', '-c', str(path)], capsys)
        if args is None:  # an invalid value of the right type is refused by its flag
            keys = ['--' + line.partition(':')[0].replace('_', '-') for line in text.splitlines()]
            assert str(path) in message or any(key in message for key in keys), (number, text, message)
            continue
        said = yaml.safe_load(text) or {}
        for key, value in said.items():
            kept = getattr(args, key.replace('-', '_'))
            if value is not None and not isinstance(value, list) and isinstance(kept, (int, float)):
                assert kept == type(kept)(value), (number, text)
            elif value is not None and not isinstance(value, list) and key != 'data_dir':  # '' is that of DIR
                assert kept == value, (number, text)
        again, message = parsed(parse_train_args, ['-c', write_yaml(tmp_path / 'again.yaml', args)], capsys)
        assert again is not None and plain(values(again)) == plain(values(args)), (number, text, message)


def write_yaml(path, args):
    path.write_text(yaml.safe_dump(values(args)))
    return str(path)


@pytest.mark.slow
def test_misspelt_keys_get_a_hint_one_edit_away(capsys, tmp_path):
    parser, path = train_parser(), tmp_path / 'options.yaml'
    names = [action.dest for action in flags_of(parser)] + ['data']
    for number in range(SEED, SEED + COUNT):
        draw = random.Random(number)
        name = draw.choice(names)
        typo = one_edit(name, draw)
        if typo in names or not typo:
            continue
        path.write_text(f'{json.dumps(typo)}: 1')
        args, message = parsed(parse_train_args, ['data', '-c', str(path)], capsys)
        assert args is None and f"unknown option '{typo}'" in message
        meant = message.partition('did you mean ')[2].partition('?')[0]
        assert is_one_edit(meant, typo), (typo, meant, name)


# Not for a machine without network, devices, extras or hours; or what makes a run long or none, or is the test's own.
NOT_RUN = {
    'push_to_hub', 'hub_private', 'hub_revision', 'hub_pr', 'log_wandb', 'pretrained', 'pretrained_path', 'dataset',
    'dataset_download', 'kd_model_name', 'device_modules', 'torchcompile', 'workers', 'stop_epoch', 'output',
    'experiment', 'img_size', 'input_size', 'train_img_sizes', 'data_dir', 'fsdp', 'train_batches_per_epoch', 'model',
    'epoch_repeats', 'num_classes', 'resume', 'dry_run', 'check_data', 'log_tensorboard', 'torchscript',
    'aug_repeats', 'local_rank'}
RUN_WORDS = {'aa': ['rand-m9-mstd0.5', 'rand-mX', 'augmix-m3', 'original', '3a', 'rand-n0', 'rand-m9-tweights'],
             'opt': ['adamw', 'lamb', 'foo', 'lion', 'rmsprop', 'adafactor', 'lookahead_sgd', 'x_sgd', 'muon', ''],
             'sched': ['step', 'multistep', 'plateau', 'wsd', 'none', 'poly', 'tanh', 'constant', 'Cosine'],
             'gp': ['avg', 'max', 'catavgmax', 'token', '', 'fast'], 'device': ['cpu', 'cuda', 'meta', 'cpu:9', 'tpu'],
             'opt_kwargs': ['nesterov=True', 'lr=1', 'foo=1', 'eps=x', 'fallback_list=5', 'foreach=1'],
             'model_kwargs': ['depth=1', 'num_classes=5', 'drop_path_rate=2', 'in_chans=1', 'layers=(1,1,1,1)',
                              'stem_width=0'],
             'class_stats': ['/etc/passwd', 'nowhere'], 'loss_class_weight': ['1,2,3', 'inv_freq', '1', 'x', '-1,1,1']}


def run_line(draw):
    """A command line with mostly valid values, so that building and training are tested as well."""
    argv = []
    actions = [action for action in flags_of(train_parser()) if action.dest not in NOT_RUN]
    for action in draw.choices(actions, k=draw.choice([1, 1, 2, 3])):
        words = words_for(action, draw)
        if action.dest in RUN_WORDS:
            words = [draw.choice(RUN_WORDS[action.dest])]
        elif action.type is int or action.type is float:
            words = [draw.choice(['0', '1', '2', '3', '8'] if action.type is int else
                                 ['0', '0.01', '0.5', '0.99', '1', '2', '1e-30', '1e30']) for _ in words]
        argv += [action.option_strings[0], *words]
    return argv


def first_lines(folder, argv):
    """The only row of a run's summary.csv."""
    with open(folder / 'summary.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 1, argv
    return rows[0]


def check_run(args, folder, argv, capsys):
    """Check that args.yaml and summary.csv agree with the command line."""
    again, message = parsed(parse_train_args, ['-c', str(folder / 'args.yaml')], capsys)
    assert again is not None, (argv, message)
    written = plain(values(again))
    for action in flags_of(train_parser()):
        assert written[action.dest] == plain(args[action.dest]), (argv, action.dest)
    row = first_lines(folder, argv)
    assert row['epoch'] == '0'
    if args['sched'] == 'none' and args['lr'] is not None and not args['layer_decay']:
        assert float(row['lr']) == pytest.approx(args['lr']), argv


@pytest.mark.slow
def test_random_runs_train_or_end_in_one_line(photos, tmp_path, capsys):
    trained = 0
    for number in range(SEED, SEED + RUNS):
        draw = random.Random(number)
        model = draw.choice([['--model', 'test_resnet'], ['--model', 'test_vit', '--model-kwargs', 'img_size=32']])
        base = [str(photos), *model, '--img-size', '32', '-b', '4', '-j', '0', '--num-classes', '3', '--epochs', '2',
                '--stop-epoch', '1', '--lr', '0.01', '--warmup-epochs', '0', '--train-interpolation', 'bilinear']
        argv = [*base, *run_line(draw), '--output', str(tmp_path), '--experiment', f'run{number}']
        args, _ = parsed(parse_train_args, argv, capsys)
        if args is None:
            continue
        given = values(args)
        folder = tmp_path / f'run{number}'
        with time_limit(120, argv):
            try:
                train_cli.main(argv)
            except SystemExit as error:
                lines = [line for line in capsys.readouterr().err.splitlines() if ': error: ' in line]
                assert len(lines) == 1 and 'Traceback' not in lines[0], (shlex.join(argv), lines)
                assert error.code == 2 and not folder.exists() or error.code == 1, (shlex.join(argv), lines)
                print(number, shlex.join(argv[len(base):-4]), lines[0])
                continue
            except Exception as error:
                raise AssertionError(f'{number}: {shlex.join(argv)}') from error
        trained += 1
        check_run(given, folder, argv, capsys)
    assert trained > RUNS / 5
