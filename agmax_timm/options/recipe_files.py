"""Recipes and studies that come with the package, by name: 'demo', 'aug/cutmix_aa', 'method/agmax'."""
import argparse
import os
from typing import Any

from ..base.errors import OptionError
from ..base.text import nearest

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_FOLDERS = (os.path.join(_PACKAGE, 'hparams'), os.path.join(os.path.dirname(_PACKAGE), 'hparams'))  # installed, cloned
STUDIES = 'studies'


def find_recipe(name: str, kind: str = '') -> str:
    """Return the path of an option file: the file of this name, otherwise the recipe of the package.

    Args:
        name: Path, or name of a recipe, which may begin with hparams/ and end in .yaml.
        kind: STUDIES for a study.

    Raises:
        OptionError: There is no such file or recipe.
    """
    if os.path.exists(name) and not os.path.isdir(name):  # a pipe is a file, too
        return name
    known = _known(kind)
    short = name.removeprefix('hparams/').removeprefix(f'{STUDIES}/' if kind else '').removesuffix('.yaml')
    if short not in known:
        place = f"'{name}': " if kind else ''  # errors of recipes have --config and the name before them
        raise OptionError(f"{place}No such file, nor a name of --list-{kind or 'recipes'}{nearest(short, known)}")
    return known[short]


def _known(kind: str) -> dict[str, str]:
    """Return the paths of all recipes, or of all studies, by name."""
    home = os.path.join(next(filter(os.path.isdir, _FOLDERS)), kind)
    paths = [os.path.join(folder, file) for folder, _, files in os.walk(home) for file in files
             if file.endswith('.yaml') and (kind or os.path.basename(folder) != STUDIES)]
    names = {os.path.relpath(path, home).replace(os.sep, '/').removesuffix('.yaml'): path for path in paths}
    return dict(sorted(names.items(), key=lambda item: (item[0].count('/'), item[0])))


class ListRecipes(argparse.Action):
    """Print the names of all recipes or studies with the first sentence of their comments, and end the command."""

    def __init__(self, option_strings: list[str], dest: str, kind: str = '', **kwargs: Any):
        super().__init__(option_strings, 'help', nargs=0, default=argparse.SUPPRESS, **kwargs)  # as --help, no option
        self.kind = kind

    def __call__(self, parser, namespace, values, option_string=None):
        for name, path in _known(self.kind).items():
            print(f'{name:28}{_first_sentence(path)}')
        parser.exit()


def _first_sentence(path: str) -> str:
    words: list[str] = []
    with open(path, encoding='utf-8') as file:
        for line in file:
            words += line.lstrip('#').split()
            if not line.startswith('#') or not line.strip('#\n ') or line.rstrip().endswith(('.', ':')):
                break
    return ' '.join(words).partition('. ')[0].rstrip('.:')
