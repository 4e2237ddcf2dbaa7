"""The wheel: what it contains, and that its commands work in another folder."""
import configparser
import os
import subprocess
import sys
import zipfile

import pytest

from agmax_timm.__main__ import COMMANDS
from tests.helpers.paths import REPOSITORY
from tests.helpers.plain_timm import ALLOW_AGMAX, run_in_plain_timm


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(folder),
         str(REPOSITORY)], check=True)
    return next(folder.glob('*.whl'))


def test_the_wheel_contains_the_demo_and_the_licences_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'agmax_timm/data/demo.npz', 'agmax_timm/data/LICENSE.fashion-mnist', 'agmax_timm/report/page.html.jinja',
            'agmax_timm/report/comparison.html.jinja', 'agmax_timm/report/parts.html.jinja',
            'agmax_timm/weights/card.md.jinja', 'agmax_timm/training/run.py', 'agmax_timm/py.typed'} <= names
    recipes = {f'agmax_timm/{path.relative_to(REPOSITORY)}' for path in (REPOSITORY / 'hparams').rglob('*.*')}
    assert {name for name in names if name.startswith('agmax_timm/hparams/')} == recipes
    assert not [name for name in names if name.startswith(('tests', 'tools', 'hparams'))]
    assert any(name.endswith('/LICENSE') for name in names)
    assert wheel.stat().st_size < 4e6


def test_the_commands_of_the_wheel_work_from_another_folder_without_torch(wheel, tmp_path):
    site, folder = tmp_path / 'site', tmp_path / 'empty'
    zipfile.ZipFile(wheel).extractall(site)
    folder.mkdir()
    found = configparser.ConfigParser()
    found.read(next(site.glob('*.dist-info/entry_points.txt')))
    scripts = dict(found['console_scripts'])
    assert set(scripts) == set(COMMANDS)
    code = f"""
import importlib, sys
sys.path.insert(0, {str(site)!r})
def run(name, *argv):
    module, _, function = {scripts!r}[name].partition(':')
    sys.argv[0] = name
    try:
        getattr(importlib.import_module(module), function)([*argv])
    except SystemExit as end:
        assert not end.code, name
for name in {[*scripts]!r}:
    run(name, '--help')
run('agmax-train', '--list-recipes')
run('agmax-study', '--list-studies')
assert 'torch' not in sys.modules and 'timm' not in sys.modules
from agmax_timm.options.parse import parse_train_args
print(parse_train_args(['-c', 'demo', '-c', 'method/baseline']).model, importlib.import_module('agmax_timm').__file__)
"""
    lines = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, check=True,
                           env={**os.environ, 'PYTHONPATH': ''}).stdout.splitlines()
    assert len([line for line in lines if line.startswith('usage: ')]) == len(scripts)
    assert {'demo', 'ablation_pocket'} <= {line.split()[0] for line in lines if line.strip()}
    assert lines[-1] == f'test_resnet {site / "agmax_timm" / "__init__.py"}'


def test_pyproject_contains_only_the_build():
    lines = (REPOSITORY / 'pyproject.toml').read_text().splitlines()
    assert [line for line in lines if line.startswith('[')] == ['[build-system]']


COUNT_RELEASED = 'print(len(timm.list_models("agmax_*", pretrained=True)))'


def test_importing_needs_no_extra_and_no_network_and_registers_the_released_models():
    code = ('import sys; sys.modules["matplotlib"] = None; import socket; socket.socket.connect = None\n'
            'from agmax_timm import *; AgMaxTask, create_two_view_loader\n'
            f'import timm; {COUNT_RELEASED}')
    completed = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (completed.returncode, completed.stdout) == (0, '4\n'), completed.stderr


def test_the_released_models_are_registered_if_timm_is_imported_first(tmp_path):
    printed = run_in_plain_timm(f'{ALLOW_AGMAX}import timm, agmax_timm; {COUNT_RELEASED}', cwd=tmp_path)
    assert printed == '4\n'
