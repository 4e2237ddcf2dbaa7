"""The order of the layers, read from the import statements of the package."""
import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import agmax_timm
from tests.helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / 'agmax_timm'
# Modules of a layer import modules of their own layer and of those before it.
LAYERS = [
    {'base'}, {'options', 'data'}, {'loss', 'network'}, {'task', 'remembered'}, {'distillation'},
    {'weights', 'registration'}, {'assembly'}, {'evaluation', 'bench'}, {'training'}, {'report'},
    {'export', 'convert', 'predict', 'publish'},
    {'commands'}, {'study'}, {'__main__'},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def imports():
    """Modules that each module imports, below the package: {'data.views': {'base.random_state'}}."""
    paths = {_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}
    return {name: _imports(name, path, paths) - {name} for name, path in paths.items()}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imports(name, path, known):
    """Modules that a file imports, also within functions."""
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split('.') if package else []
            base = '.'.join([*parts[:len(parts) - node.level + 1], *(node.module or '').split('.')]).strip('.')
            found |= {next((name for name in (f'{base}.{alias.name}'.strip('.'), base) if name in known), base)
                      for alias in node.names}
    return found & known.keys()


def layer(name):
    return name.partition('.')[0]


def test_every_module_has_a_layer():
    assert {layer(name) for name in imports()} - LEVEL.keys() == {''}


def test_imports_point_to_lower_layers():
    upward = {f'{name} imports {other}' for name, others in imports().items() if name for other in others
              if other and LEVEL[layer(other)] > LEVEL[layer(name)]}
    assert not upward, sorted(upward)


def test_layers_of_one_level_do_not_import_each_other():
    across = {f'{name} imports {other}' for name, others in imports().items() if name for other in others
              if other and layer(other) != layer(name) and LEVEL[layer(other)] == LEVEL[layer(name)]}
    assert not across, sorted(across)


def test_base_does_not_import_timm():
    """Neither at the top of a file nor within a function."""
    found = [path.name for path in (PACKAGE / 'base').rglob('*.py')
             if re.search(r'^\s*(from|import) timm\b', path.read_text(), re.MULTILINE)]
    assert not found, found


def test_no_files_import_each_other():
    TopologicalSorter(imports()).prepare()  # raises CycleError


def test_no_folders_import_each_other():
    """Imports between folders form no circle, and a subfolder does not import the folder that contains it."""
    folders = {}
    for name, others in imports().items():
        folders.setdefault(folder(name), set()).update(map(folder, others))
        folders.setdefault(folder(name).rpartition('.')[0], set()).add(folder(name))
    TopologicalSorter({name: others - {name, ''} for name, others in folders.items() if name}).prepare()


def folder(name):
    """The folder of a module, '' for a module of the package itself."""
    path = PACKAGE.joinpath(*name.split('.'))
    return name if path.is_dir() else name.rpartition('.')[0]


def test_each_folder_has_a_docstring():
    for path in PACKAGE.rglob('__init__.py'):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_type_checkers_find_the_public_names():
    """mypy and pyright read the branch of TYPE_CHECKING. At run time, each name is imported when it is used."""
    branch, = (node for node in ast.parse((PACKAGE / '__init__.py').read_text()).body if isinstance(node, ast.If))
    assert ast.unparse(branch.test) == 'TYPE_CHECKING'
    shown = {alias.name: f'.{node.module}' for node in branch.body for alias in node.names}
    assert shown == agmax_timm._HOMES and not agmax_timm.TYPE_CHECKING
    assert all(hasattr(agmax_timm, name) for name in agmax_timm.__all__)


DRAWINGS = re.findall(r'```mermaid\n(.*?)```', (REPOSITORY / 'docs' / 'architecture.md').read_text(), re.DOTALL)


def reached(drawing):
    """The nodes of a drawing that the arrows of each node reach, also over others."""
    arrows = {}
    for line in drawing.splitlines():
        nodes = [node.strip().partition('[')[0] for node in line.split('-->')]
        for one, other in zip(nodes, nodes[1:]):
            arrows.setdefault(one, set()).add(other)
    found = {}
    for node in TopologicalSorter(arrows).static_order():
        direct = arrows.get(node, set())
        found[node] = direct.union(*(found[other] for other in direct))
    return found


def test_imports_between_folders_follow_the_arrows():
    drawing = DRAWINGS[0]
    nodes = {file: node for node, label in re.findall(r'(\w+)\["(.*?)<br>', drawing)
             for file in re.findall(r'(\w+)\.py', label) or [node]}
    allowed = reached(drawing)
    assert LEVEL.keys() - nodes.keys() == {'registration', '__main__'}
    for name, others in imports().items():
        for one, other in ((layer(name), layer(imported)) for imported in others):
            if one in nodes and other in nodes and nodes[one] != nodes[other]:
                assert nodes[other] in allowed[nodes[one]], f'no arrow from {one} to {other}, which {name} imports'


def test_imports_between_subfolders_follow_the_arrows():
    allowed, found = reached(DRAWINGS[1]), {'data', 'training'}
    for name, others in imports().items():
        for imported in others:
            if layer(name) == layer(imported) and layer(name) in ('data', 'training'):
                one, other = map(_subfolder, (name, imported))
                found |= {one, other}
                assert one == other or other in allowed[one], f'no arrow from {one} to {other}, which {name} imports'
    assert found == allowed.keys()


def _subfolder(name):
    """The subfolder of a module in data/ or training/, or the folder itself."""
    top, *below = name.split('.')
    return below[0] if below and (PACKAGE / top / below[0]).is_dir() else top
