"""The wheel: what it carries, and that its commands work elsewhere."""
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(folder),
         str(REPOSITORY)], check=True)
    return next(folder.glob('*.whl'))


def test_the_wheel_carries_the_demo_and_the_licences_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'agmax_timm/data/demo.npz', 'agmax_timm/data/LICENSE.fashion-mnist', 'agmax_timm/run/training.py'} <= names
    assert not [name for name in names if name.startswith(('tests', 'tools', 'hparams'))]
    assert any(name.endswith('/LICENSE') for name in names)
    assert wheel.stat().st_size < 4e6


def test_the_commands_of_the_wheel_work_from_another_folder(wheel, tmp_path):
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    entry_points = next(site.glob('*.dist-info/entry_points.txt')).read_text()
    for name, module in (('agmax-train', 'agmax_timm.run.training'), ('agmax-validate', 'agmax_timm.run.validation')):
        assert f'{name} = {module}:main' in entry_points
        completed = subprocess.run(
            [sys.executable, '-c', f'import sys; sys.path.insert(0, r"{site}"); from {module} import main; '
                                   f'main(["--help"])'],
            cwd=tmp_path, capture_output=True, text=True, check=True)
        assert '--model' in completed.stdout


def test_pyproject_holds_the_build_alone():
    lines = (REPOSITORY / 'pyproject.toml').read_text().splitlines()
    assert [line for line in lines if line.startswith('[')] == ['[build-system]']


def test_importing_needs_no_extra_and_no_network():
    code = ('import sys; sys.modules["matplotlib"] = None; import socket; socket.socket.connect = None; '
            'import agmax_timm; print(agmax_timm.__all__)')
    subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)


def test_help_costs_less_than_twice_the_import_of_timm():
    """In CPU seconds: the parser must not drag in much more than timm does."""
    def seconds(*argv):
        code = ('import os, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); '
                't = os.times(); print(t.children_user + t.children_system)')
        return float(subprocess.run([sys.executable, '-c', code, sys.executable, *argv], cwd=REPOSITORY, check=True,
                                    capture_output=True, text=True).stdout)
    assert seconds('train.py', '--help') < 2 * seconds('-c', 'import timm')
