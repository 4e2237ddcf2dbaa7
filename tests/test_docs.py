"""The commands in docs/ are ones that the command lines take, and what docs/ names is there."""
import re
import shlex
from pathlib import Path

import pytest

from agmax_timm.run.config import parse_train_args, parse_validate_args

DOCS = Path(__file__).parent.parent / 'docs'
PARSERS = {'train.py': parse_train_args, 'validate.py': parse_validate_args}
COMMANDS = [
    (path.name, ' '.join(command.split()))
    for path in sorted(DOCS.glob('*.md'))
    for block in re.findall(r'```bash\n(.*?)\n```', path.read_text(), re.S)
    for command in block.replace('\\\n', ' ').split('\n')
    if not PARSERS.keys().isdisjoint(command.split())]


@pytest.mark.parametrize('document, command', COMMANDS)
def test_commands_parse(document, command, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word in PARSERS)
    PARSERS[words[at]](words[at + 1:])


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize('path', [*DOCS.glob('*.md'), DOCS.parent / 'README.md'], ids=lambda path: path.name)
def test_links_and_files_are_there(path):
    text = path.read_text()
    for target in re.findall(r'\]\((?!https?:)([^)#]+)\)', text):
        assert (path.parent / target).exists(), target
    for target in re.findall(r'`((?:tests|tools|hparams|docs|agmax_timm)/[\w./-]+)`', text):
        assert (DOCS.parent / target).exists(), target
