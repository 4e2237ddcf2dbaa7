"""Messages to the user put names in quotes: paths, models, classes, data sets, keys, metrics, patterns.

A value in a message is taken for a name if its variable is in NAMES, or if it is an option that takes any text.
"""
import ast
import re

from agmax_timm.options.declare import by_any_name
from agmax_timm.options.parsers import TrainOptions, ValidateOptions
from tests.helpers.paths import REPOSITORY

MESSAGE = re.compile('(Error|error|^_?warn|^warning|^_?expected|^Interrupted|^_try)$')  # calls that take a message
NAMES = """architecture checkpoint class_map class_name column dataset directory file filename folder key metric model
    path pattern repo_id root run_dir""".split()
OPTIONS = by_any_name(ValidateOptions) | by_any_name(TrainOptions)


def is_name(node):
    """Whether an expression is a variable or attribute that holds a name, such as `path` or `options.model`."""
    word = getattr(node, 'id', getattr(node, 'attr', ''))
    option = OPTIONS.get(word) if isinstance(node, ast.Attribute) else None
    return word in NAMES or option is not None and option.kind is str and not option.choices


def unquoted(text):
    """Yield the names in an f-string that are not in quotes."""
    for before, value, after in zip([None, *text.values], text.values, [*text.values[1:], None]):
        if isinstance(value, ast.FormattedValue) and is_name(value.value) and value.conversion != ord('r'):
            before, after = (part.value if isinstance(part, ast.Constant) else '' for part in (before, after))
            if not (re.search(r"'[\w:./-]*$", before) and re.match(r"[\w:./-]*'", after)):
                yield ast.unparse(value.value)


def findings(source):
    for node in ast.walk(ast.parse(source)):
        function = getattr(node, 'func', None)
        if isinstance(node, ast.Yield) or MESSAGE.search(getattr(function, 'id', getattr(function, 'attr', ''))):
            for text in ast.walk(node):
                if isinstance(text, ast.JoinedStr):
                    yield from (f'{text.lineno}: {name} in {ast.unparse(text)}' for name in unquoted(text))


def test_names_in_messages_are_in_quotes():
    found = {str(path.relative_to(REPOSITORY)): list(findings(path.read_text()))
             for path in (REPOSITORY / 'agmax_timm').rglob('*.py')}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_name_without_quotes_is_found():
    source = '''
def check(options, path, error, size: int):
    error(f"--model '{options.model}' in {path!r}: {size} of {options.batch_size}")
    yield f'{path!r} is a file, {path} is empty'
    raise ValueError(f'{path} is empty')
'''
    assert [line.split(' in ')[0] for line in findings(source)] == ['4: path', '5: path']
