"""Recipes and studies by name, and the list of the commands."""
import sys

import pytest

from agmax_timm import __main__ as commands
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.recipe_files import STUDIES, find_recipe
from agmax_timm.study import command as study
from tests.helpers.paths import REPOSITORY

HPARAMS = REPOSITORY / 'hparams'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', ['demo', 'demo.yaml', 'hparams/demo.yaml', str(HPARAMS / 'demo.yaml')])
def test_a_recipe_is_the_same_by_name_and_by_path(name):
    assert vars(parse_train_args(['-c', name])) == vars(parse_train_args(['-c', str(HPARAMS / 'demo.yaml')]))


@pytest.mark.parametrize('name', ['demo_fair', 'studies/demo_fair', 'hparams/studies/demo_fair.yaml'])
def test_a_study_is_found_by_name(name):
    assert find_recipe(name, STUDIES) == str(HPARAMS / 'studies' / 'demo_fair.yaml')


def test_later_recipes_override_earlier_ones_also_by_name():
    options = parse_train_args(['-c', 'demo', '-c', 'method/baseline', '--epochs', '3'])
    assert (options.dataset, options.agmax, options.epochs) == ('demo', False, 3)


def test_a_file_of_the_user_has_priority_over_a_recipe(elsewhere):
    (elsewhere / 'demo').write_text('dataset: demo\nepochs: 7\n')
    assert parse_train_args(['-c', 'demo']).epochs == 7


def test_a_folder_of_the_user_has_no_priority_over_a_recipe(elsewhere):
    (elsewhere / 'demo').mkdir()
    (elsewhere / 'demo_fair').mkdir()
    assert parse_train_args(['-c', 'demo']).dataset == 'demo'
    assert find_recipe('demo_fair', STUDIES) == str(HPARAMS / 'studies' / 'demo_fair.yaml')


@pytest.mark.parametrize('run, argv, words', [
    (parse_train_args, ['-c', 'demmo'], ["--config 'demmo': No such file", 'did you mean demo?']),
    (parse_train_args, ['-c', 'studies/demo_fair'], ["--config 'studies/demo_fair'", '--list-recipes']),
    (study.main, ['demo_fare'], ["'demo_fare': No such file", 'did you mean demo_fair?', '--list-studies']),
])
def test_an_unknown_name_is_refused_in_one_line(capsys, run, argv, words):
    with pytest.raises(SystemExit) as exit_info:
        run(argv)
    message = capsys.readouterr().err
    assert exit_info.value.code == 2 and message.count('\n') == 1 and all(word in message for word in words), message


@pytest.mark.parametrize('run, flag, folder', [
    (parse_train_args, '--list-recipes', HPARAMS), (study.main, '--list-studies', HPARAMS / STUDIES)])
def test_the_list_contains_every_file_with_its_title(capsys, run, flag, folder):
    with pytest.raises(SystemExit) as exit_info:
        run([flag])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    paths = (path.relative_to(folder) for path in folder.rglob('*.yaml'))
    assert set(listed) == {str(path.with_suffix('')) for path in paths if path.parts[0] != STUDIES}
    assert not exit_info.value.code and all(len(title) > 15 for title in listed.values())


def test_the_package_lists_its_commands(capsys):
    commands.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*commands.COMMANDS]


def test_completion_contains_every_flag_and_needs_its_package(capsys, monkeypatch):
    pytest.importorskip('shtab')
    commands.main(['--completion', 'bash'])
    text = capsys.readouterr().out
    assert all(f'-F _shtab_{name.replace("-", "_")} {name}' in text for name in commands.COMMANDS)
    assert all(f' {flag} ' in text for flag in ('--agmax-loss', '--onnx', '--topk', '--list-studies'))
    assert '_agmax_loss_choices=(mi mse kl ce)' in text.replace("'", '').replace('"', '')
    monkeypatch.setitem(sys.modules, 'shtab', None)
    with pytest.raises(SystemExit):
        commands.main(['--completion', 'zsh'])
    assert "pip install 'agmax_timm[completion]'" in capsys.readouterr().err
