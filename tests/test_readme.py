"""Every code block of the README runs, with small data and a small model where they are large."""
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import timm
from huggingface_hub import constants

from agmax_timm import export, predict, publish
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.report import command as report
from agmax_timm.study import command as study
from tests.helpers import hub_server
from tests.helpers.paths import REPOSITORY
from tests.helpers.ranks import TORCHRUN, run_command

README = (REPOSITORY / 'README.md').read_text()
BASH = re.findall(r'```bash\n(.*?)\n```', README, re.S)
PYTHON = re.findall(r'```python\n(.*?)\n```', README, re.S)
SETUP = 'python3 -m venv .venv && .venv/bin/pip install -q '
SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b', '4', '-j', '0', '--epochs', '1',
         '--experiment', 'run']


def words_of(command, photos):
    assert '\n' not in command, 'one command a block'
    words = shlex.split(command.replace('/data/imagenet', str(photos)))
    return [str(REPOSITORY / word) if word.endswith('.yaml') else word for word in words]


def test_all_blocks_are_tested():
    assert len(re.findall('```', README)) == 2 * (len(BASH) + len(PYTHON))
    assert [block.split()[0] for block in BASH] == [
        'python3', 'python3', 'python', 'python', 'torchrun', *['python'] * 8] and len(PYTHON) == 1


def test_the_demo_command_trains(tmp_path, monkeypatch, photos):
    command = BASH[0]
    assert command.startswith(SETUP)
    words = words_of(command.split(' && ')[-1], photos)
    assert words[:2] == ['.venv/bin/python', 'train.py']
    monkeypatch.chdir(tmp_path)
    train_cli.main([*words[2:], '--epochs', '1', '-j', '0'])
    assert len(list(tmp_path.glob('output/train/*-test_resnet-28/model_best.pth.tar'))) == 1


def test_the_test_command_starts_pytest():
    command = BASH[1]
    assert command.startswith(SETUP)
    words = command.split(' && ')[-1].split()
    assert words[0] == '.venv/bin/python'
    subprocess.run([sys.executable, *words[1:], '--version'], cwd=REPOSITORY, check=True)


def test_the_command_that_repeats_the_comparison_runs(tmp_path, monkeypatch, capsys):
    make, repeat = BASH[2].split(' && ')
    monkeypatch.chdir(tmp_path)
    run_command([sys.executable, REPOSITORY / make.split()[1], *make.split()[2:]])
    words = shlex.split(repeat)
    assert words[:3] == ['python', '-m', 'agmax_timm.study']
    study.main([str(REPOSITORY / words[3]), *words[4:], '--dry-run'])
    assert capsys.readouterr().out.count(' -m agmax_timm.study.train ') == 120


def test_commands_of_training_evaluation_prediction_and_report_run(tmp_path, monkeypatch, photos, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (BASH[3], BASH[5]):
        words = words_of(command, photos)
        assert words[:2] == ['python', 'train.py']
        shutil.rmtree(tmp_path / 'output', ignore_errors=True)  # a run enters no folder of another
        train_cli.main([*words[2:], *SMALL])
    words = words_of(BASH[6], photos)
    assert words[:2] == ['python', 'validate.py']
    validate_cli.main([*words[2:], '-j', '0'])
    assert '"top1"' in capsys.readouterr().out

    words = words_of(BASH[7], photos)
    assert words[:3] == ['python', '-m', 'agmax_timm.predict']
    predict.main([*words[3:], '-j', '0'])
    assert len(capsys.readouterr().out.splitlines()) == 12
    words = words_of(BASH[8], photos)
    assert words[:3] == ['python', '-m', 'agmax_timm.report']
    report.main([*words[3:], '-j', '0'])
    assert (tmp_path / capsys.readouterr().out.strip()).name == 'report.html'


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A Hub on this machine, and the token of its user `me`."""
    with hub_server.serve(tmp_path_factory.mktemp('hub')) as server:
        server.add_user('hf_write', 'me')
        monkeypatch.setattr(constants, 'ENDPOINT', server.url)  # what HF_ENDPOINT sets at import, and the next
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', server.url + '/{repo_id}/resolve/{revision}/{filename}')
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setenv('HF_TOKEN', 'hf_write')
        yield server


def test_commands_of_publishing_and_export_run(tmp_path, monkeypatch, photos, hub, capsys):
    monkeypatch.chdir(tmp_path)
    words = words_of(BASH[9], photos)
    assert words[:2] == ['python', 'train.py']
    train_cli.main([*words[2:], *SMALL])
    assert list(hub.repos) == ['me/resnet50.agmax']

    words = words_of(BASH[10], photos)
    assert words[:3] == ['python', '-m', 'agmax_timm.publish']
    publish.main(words[3:])
    assert 'me/resnet50.agmax' in capsys.readouterr().out

    words = words_of(BASH[11], photos)
    assert words[:3] == ['python', '-m', 'agmax_timm.export']
    export.main(words[3:])
    assert timm.create_model('local-dir:exported', pretrained=True).num_classes == 3


def test_the_command_of_a_study_runs(photos, capsys):
    words = words_of(BASH[12], photos)
    assert words[:3] == ['python', '-m', 'agmax_timm.study']
    study.main([*words[3:], '--dry-run'])  # the runs of it are in test_the_command_of_a_study_runs.py
    assert capsys.readouterr().out.count(' -m agmax_timm.study.train ') == 60


def test_the_command_of_torchrun_trains(tmp_path, photos):
    words = [*words_of(BASH[4], photos)[1:], *SMALL, '-b', '2', '--output', tmp_path]
    completed = run_command([*TORCHRUN, *words])
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / 'run' / 'last.pth.tar').exists()


def test_the_script_trains(photos):
    code = PYTHON[0]
    for word, small in (('/data/imagenet', str(photos)), ('224, 224', '32, 32'), ('batch_size=128', 'batch_size=4'),
                        ('num_workers=4', 'num_workers=0'), ("'resnet50'", "'test_resnet', num_classes=3")):
        assert word in code
        code = code.replace(word, small)
    variables = {}
    exec(code, variables)
    assert variables['loss'].isfinite() and len(variables['input']) == 8


@pytest.mark.parametrize('target', re.findall(r'\]\((?!http)([^)#]+)\)', README))
def test_links_resolve(target):
    assert (REPOSITORY / target).exists()
