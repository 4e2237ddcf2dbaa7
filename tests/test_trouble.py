"""docs/trouble.md quotes messages of the package and flags of its commands."""
import ast
import re

import pytest

from agmax_timm.options.declare import declared
from agmax_timm.options.parsers import TrainOptions, ValidateOptions
from tests.helpers.paths import REPOSITORY

TEXT = (REPOSITORY / 'docs' / 'trouble.md').read_text()
OF_OTHERS = {'--local-dir', '--nproc-per-node', '--shm-size'}
OF_TORCH = {'CUDA out of memory'}
ROWS = [line.split(' | ')[0] for line in TEXT.splitlines() if line.startswith('| `')]
QUOTES = [quote for row in ROWS for quote in re.findall(r'`([^`]+)`', row) if quote not in OF_TORCH]


def text_of(node):
    """A message with `…` for each value. None for nodes that are not text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return ''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
    return None


@pytest.fixture(scope='module')
def trees():
    """The syntax trees of the package's files."""
    return [ast.parse(path.read_text()) for path in (REPOSITORY / 'agmax_timm').rglob('*.py')]


def test_every_message_is_in_the_source(trees):
    messages = '\n'.join(text for tree in trees for text in map(text_of, ast.walk(tree)) if text)
    assert [quote for quote in QUOTES if quote not in messages] == []


def test_every_flag_exists(trees):
    flags = {'--help'} | {
        text_of(word) for tree in trees for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, 'attr', '') == 'add_argument' for word in call.args} | {
        flag for options in (TrainOptions, ValidateOptions) for option in declared(options).values()
        for flag in option.flags}
    code = ' '.join(re.findall(r'`([^`]+)`', TEXT))
    named = set(re.findall(r'(?<![\w-])--[a-z][\w-]*\*?', code))
    assert len(named) > 30
    wrong = [flag for flag in named - OF_OTHERS - flags
             if not (flag.endswith('*') and any(known.startswith(flag[:-1]) for known in flags if known))]
    assert not wrong


def test_every_message_is_quoted_once():
    assert len(QUOTES) > 40 and len(QUOTES) == len(set(QUOTES))
