"""The wheel: what it carries, and that its commands work elsewhere."""
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import REPOSITORY


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(folder),
         str(REPOSITORY)], check=True)
    return next(folder.glob('*.whl'))


def test_the_wheel_carries_the_demo_and_the_licences_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'agmax_timm/data/demo.npz', 'agmax_timm/data/LICENSE.fashion-mnist', 'agmax_timm/report/page.html.jinja',
            'agmax_timm/report/comparison.html.jinja', 'agmax_timm/report/parts.html.jinja',
            'agmax_timm/weights/card.md.jinja', 'agmax_timm/training/run.py', 'agmax_timm/py.typed'} <= names
    assert not [name for name in names if name.startswith(('tests', 'tools', 'hparams'))]
    assert any(name.endswith('/LICENSE') for name in names)
    assert wheel.stat().st_size < 4e6


def test_the_commands_of_the_wheel_work_from_another_folder(wheel, tmp_path):
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    entry_points = next(site.glob('*.dist-info/entry_points.txt')).read_text()
    for command in ('train', 'validate'):
        assert f'agmax-{command} = agmax_timm.commands.{command}:main' in entry_points
        code = (f'import sys; sys.path.insert(0, r"{site}"); '
                f'from agmax_timm.commands.{command} import main; ')
        completed = subprocess.run(
            [sys.executable, '-c', code + 'main(["--help"])'],
            cwd=tmp_path, capture_output=True, text=True, check=True)
        assert '--model' in completed.stdout


def test_pyproject_holds_the_build_alone():
    lines = (REPOSITORY / 'pyproject.toml').read_text().splitlines()
    assert [line for line in lines if line.startswith('[')] == ['[build-system]']


def test_importing_needs_no_extra_and_no_network():
    code = ('import sys; sys.modules["matplotlib"] = None; import socket; socket.socket.connect = None; '
            'from agmax_timm import *; print(AgMaxTask, create_two_view_loader)')
    subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)
