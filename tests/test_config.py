"""Options: precedence, types, and one line for every mistake."""
import pytest
import yaml

from agmax_timm.run.config import explicit_options, parse_train_args, parse_validate_args
from agmax_timm.run.options import train_parser, validate_parser


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


def test_later_files_win_and_flags_win_over_all(config):
    first = config('lr: 0.1\nepochs: 10\nmixup: 0.2', 'first.yaml')
    second = config('epochs: 20\nmixup: 0.4', 'second.yaml')
    args = parse_train_args(['data', '-c', first, '--mixup', '0.8', '--config', second])
    assert (args.lr, args.epochs, args.mixup, args.opt) == (0.1, 20, 0.8, 'sgd')


def test_a_later_file_resets_what_an_earlier_one_set(config):
    files = ['-c', config('aa: original\nlr: 0.5', 'first.yaml'), '-c', config('aa: null\nlr: null', 'second.yaml')]
    args = parse_train_args(['data', *files])
    assert args.aa is None and args.lr is None


def test_data_dir_wins_over_the_positional():
    assert parse_train_args(['a', '--data-dir', 'b']).data_dir == 'b'
    assert parse_train_args(['a']).data_dir == 'a'


def test_yaml_values_take_the_types_of_their_flags(config):
    path = config("lr: 3e-4\nimg-size: 32\nmean: [0.5, 0.5, 0.5]\nagmax: true\nmodel_kwargs: {depth: 2}\naa: null\n")
    args = parse_train_args(['data', '-c', path])
    assert args.lr == 3e-4 and args.img_size == 32 and args.agmax is True
    assert args.mean == [0.5] * 3 and args.model_kwargs == {'depth': 2} and args.aa is None


def test_an_empty_file_changes_nothing(config):
    assert vars(parse_train_args(['data', '-c', config(''),])) == vars(parse_train_args(['data']))


def test_options_written_as_yaml_give_the_same_options(config):
    args = parse_train_args(['data', '--agmax', '--mean', '0.1', '0.2', '0.3', '--opt-kwargs', 'nesterov=False'])
    path = config(yaml.safe_dump(vars(args)))
    assert vars(parse_train_args(['-c', path])) == vars(args)


@pytest.mark.parametrize('text, words', [
    ('bach_size: 32', ['bach_size', 'did you mean batch_size']),
    ('epochs: many', ['epochs', "'many'", 'int']),
    ('epochs: 1.5', ['epochs', '1.5']),
    ('agmax: 1', ['agmax', 'true or false']),
    ('agmax_loss: huber', ['agmax_loss', 'huber', 'mi, mse, kl, ce']),
    ('mean: 0.5', ['mean', 'list']),
    ('aa: [a]', ['aa', "['a']"]),
    ('- a\n- b', ['list']),
    ('a: b: c', ['config.yaml']),
])
def test_bad_files_are_one_line(config, capsys, text, words):
    message = error_of(capsys, '-c', config(text))
    assert all(word in message for word in words), message


def test_a_missing_file_is_one_line(capsys):
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
    ('--train-crop-mode middle', ['--train-crop-mode', 'middle', 'pad']),
    ('--no-aug --cutout 8', ['--no-aug', '--cutout']),
    ('--amp --model-dtype bfloat16', ['--amp', '--model-dtype bfloat16']),
    ('--agmax-weight 2', ['--agmax-weight', '--agmax']),
    ('--agmax --agmax-loss kl --agmax-units 8', ['--agmax-units', 'kl']),
    ('--agmax --agmax-units 0', ['--agmax-units', '0']),
    ('--agmax --agmax-init-std 0.2 --pretrained', ['--agmax-init-std', '--pretrained']),
    ('--agmax --agmax-init-std 0', ['--agmax-init-std', '0']),
    ('--agmax --resplit', ['--resplit', '--agmax']),
    ('--agmax-loss huber', ['--agmax-loss', 'huber']),
    ('--no-such-flag', ['--no-such-flag']),
])
def test_bad_flags_are_one_line(capsys, argv, words):
    message = error_of(capsys, *argv.split())
    assert all(word in message for word in words), message


def test_the_command_line_is_told_from_the_defaults():
    argv = ['data', '--img-size', '32', '--use-ema']
    assert explicit_options(validate_parser(), argv) == {'data', 'img_size', 'use_ema'}
    assert parse_validate_args(argv).explicit == {'data', 'img_size', 'use_ema'}


@pytest.mark.parametrize('parser', [train_parser(), validate_parser()], ids=['train', 'validate'])
def test_every_flag_has_a_help_text(parser):
    assert [action.option_strings for action in parser._actions if not action.help] == []


def test_abbreviations_work():
    assert parse_train_args(['data', '--model-ema-d', '0.5']).model_ema_decay == 0.5
