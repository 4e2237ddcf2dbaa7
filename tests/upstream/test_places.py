"""Every contract of this folder says where it is relied on: in a file or folder of the package that exists."""
import ast
import re
from pathlib import Path

import pytest

import agmax_timm

PACKAGE = Path(agmax_timm.__file__).parent
CONTRACTS = {
    f'{path.stem}::{node.name}': ast.get_docstring(node) or ''
    for path in Path(__file__).parent.glob('test_*_internals.py') for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}


@pytest.mark.parametrize('name', CONTRACTS)
def test_a_contract_names_a_place_that_exists(name):
    places = re.findall(r'\b(?:task|distillation)\.py|[a-z]+/[\w/]*(?:\.py)?', CONTRACTS[name])
    places = [place for place in places if place.endswith('.py') or (PACKAGE / place.split('/')[0]).is_dir()]
    assert places, 'name the file of the package that breaks'
    assert [place for place in places if not (PACKAGE / place).exists()] == []
    for thing, place in re.findall(r'(\w+\(\)|[A-Z]\w*[a-z])\s+in\s+([\w/]+\.py)', CONTRACTS[name]):
        assert re.search(rf"^\s*(def|class) {thing.rstrip('()')}\b", (PACKAGE / place).read_text(), re.M), thing
