"""Messages to the user put names in quotes: paths, models, classes, data sets, keys, metrics, patterns."""
import ast
import re

import numpy as np

from agmax_timm.options.declare import by_any_name
from agmax_timm.options.parsers import TrainOptions, ValidateOptions
from tests.helpers.paths import REPOSITORY

MESSAGE = re.compile('(Error|error|^_?warn|^warning|^_?expected|^Interrupted|^_try)$')  # calls that take a message
# What needs no quotes, by the last word of an expression: 'model' of options.model. Parts of messages that are made in
# f-strings are checked where they are made.
FLAGS = 'flag flag_of flag_with_values flags given option_string option_strings samples_flag size_flag'
SENTENCES = """args as_user_error broken change changed command damaged data describe did_you_mean error failure format
    _found hint kind left_out message misfits _name nearest of_data one_line other_views parts_of_model problem quoted
    reason reason_of remedy _remedy replace repr sample splitlines start strerror strip title today unknown what when
    where _with_flags"""
NUMBERS = """average batch_size cores count device_count epoch epochs expected hidden high _in_a_row index input_size
    item jobs kernel_size late len local_rank loss low max mean now num_betas num_classes number numel others outputs
    own padding_mode planned ranks returncode samples scale seed severities shape shards side size _size sizes smoothing
    spare sum tuple was world_size"""
OURS = 'argv axis dtype loss_name __name__ needed package part section signal_name type types __version__'
NO_QUOTES = set(' '.join((FLAGS, SENTENCES, NUMBERS, OURS)).split())
OPTIONS = by_any_name(ValidateOptions) | by_any_name(TrainOptions)


def word_of(node):
    """The last word of an expression: 'model' of options.model, 'flag_of' of flag_of(x), 'loss' of metrics['loss']."""
    if isinstance(node, ast.Call):
        word = word_of(node.func)
        if word == 'map':
            return word_of(node.args[1] if word_of(node.args[0]) == 'str' else node.args[0])
        return word_of(node.args[-1]) if word in ('join', 'sorted', 'filter', 'get') and node.args else word
    if isinstance(node, ast.GeneratorExp):
        return word_of(node.elt)
    if isinstance(node, ast.Subscript):
        return word_of(node.slice if isinstance(node.slice, ast.Constant) else node.value) or word_of(node.value)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ''
    return getattr(node, 'id', getattr(node, 'attr', ''))


class Function:
    """A function: the f-strings of its messages, and what is assigned to the names in them."""

    def __init__(self, node):
        self.node, self.values, self.numbers = node, {}, set()
        for part in ast.walk(node):
            if isinstance(part, ast.arg) and re.match(r'(int|float)\b', ast.unparse(part.annotation or part)):
                self.numbers.add(part.arg)
            elif isinstance(part, ast.Assign):
                for target in part.targets:
                    self._assign(target, part.value)
            elif isinstance(part, (ast.For, ast.comprehension)):
                table = word_of(getattr(getattr(part.iter, 'func', None), 'value', part.iter))
                for value in getattr(part.iter, 'elts', [ast.Constant('') if table.lstrip('_').isupper() else None]):
                    self._assign(part.target, value)

    def _assign(self, target, value):
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for each in zip(target.elts, values):
                self._assign(*each)
        elif isinstance(target, ast.Name):
            self.values.setdefault(target.id, []).append(value)

    def needs_no_quotes(self, node, depth=0):
        """Whether an expression is a number, a flag, a constant or word of ours, or a part of a message."""
        if depth > 5 or node is None:
            return False
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.List)):
            return True
        if isinstance(node, ast.BinOp) and (not isinstance(node.op, (ast.Add, ast.Div)) or word_of(node.right) == ''):
            return True
        parts = self._parts_of(node)
        if parts and all(self.needs_no_quotes(part, depth + 1) for part in parts):
            return True
        word = word_of(node)
        option = OPTIONS.get(word) if isinstance(node, ast.Attribute) else None
        return word in NO_QUOTES | self.numbers or word.lstrip('_').isupper() or option is not None and bool(
            option.kind in (int, float) or option.choices or option.check and option.check.names)

    def _parts_of(self, node):
        if isinstance(node, ast.Name):
            return self.values.get(node.id, [])
        if isinstance(node, ast.Call) and word_of(node.func) == 'join':
            return node.args
        names = {ast.BoolOp: ['values'], ast.Tuple: ['elts'], ast.IfExp: ['body', 'orelse'], ast.GeneratorExp: ['elt'],
                 ast.BinOp: ['left', 'right']}.get(type(node), [])
        return [part for name in names for part in np.atleast_1d(getattr(node, name))]

    def unquoted(self, text, after=''):
        """Yield the expressions in an f-string that need quotes and have none. `after`: pattern of the text before."""
        for before, value, behind in zip([None, *text.values], text.values, [*text.values[1:], None]):
            before, behind = (part.value if isinstance(part, ast.Constant) else '' for part in (before, behind))
            if not isinstance(value, ast.FormattedValue) or not re.search(f'{after}$', before):
                continue
            spec = ast.unparse(value.format_spec) if value.format_spec else ''
            quoted = re.search(r"'[\w:./-]*$", before) and re.match(r"[\w:./-]*'", behind)
            if not (quoted or value.conversion == ord('r') or before.endswith('one of ')
                    or re.search("[defg%,]'$", spec) or self.needs_no_quotes(value.value)):
                yield ast.unparse(value.value)

    def _texts(self, node):
        """Yield the f-strings in an expression, and those assigned to names in them."""
        for text in (part for part in ast.walk(node) if isinstance(part, ast.JoinedStr)):
            yield text
            for value in text.values:
                for assigned in self.values.get(word_of(getattr(value, 'value', value)), []):
                    if assigned is not None and not isinstance(assigned, ast.Call):
                        yield from (part for part in ast.walk(assigned) if isinstance(part, ast.JoinedStr))

    def findings(self):
        """Yield line, expression and f-string of each name without quotes."""
        for node in ast.walk(self.node):
            texts = self._texts(node) if isinstance(node, ast.Call) and MESSAGE.search(word_of(node)) else ()
            for text, after in [*((text, '') for text in texts), (node, '--[a-z-]+ ')]:
                if isinstance(text, ast.JoinedStr) and 'shlex' not in ast.unparse(text):
                    yield from (f'{text.lineno}: {name} in {ast.unparse(text)}' for name in self.unquoted(text, after))


def findings(source):
    functions = (Function(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return sorted({finding for function in functions for finding in function.findings()})


def test_names_in_messages_are_in_quotes():
    found = {str(path.relative_to(REPOSITORY)): findings(path.read_text())
             for path in (REPOSITORY / 'agmax_timm').rglob('*.py')}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_name_without_quotes_is_found():
    source = '''
def check(options, path, error, size: int):
    hint = f' near {path}'
    kind = f'{len(path)} letters'
    error(f"--model '{options.model}' in {path!r}: {size} of {options.batch_size}, {kind}")
    raise ValueError(f'{path} is empty{hint}')
'''
    assert [line.split(' in ')[0] for line in findings(source)] == ['3: path', '6: path']
