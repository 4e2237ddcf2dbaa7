"""Messages as one line of visible characters."""
import re

import pytest

from agmax_timm.base.text import one_line
from agmax_timm.options.parse import parse_train_args


@pytest.mark.parametrize('message, line', [
    ('a\n\tb  c', 'a b c'), ('no file x\r', r'no file x\r'), ('\ufeffa', r'\ufeffa'), ('a\u200bb\xa0', r'a\u200bb\xa0'),
    ('caf\udce9 é 日', r'caf\udce9 é 日'),
])
def test_invisible_characters_of_a_message_are_escaped(message, line):
    assert one_line(ValueError(message)) == line


def test_a_carriage_return_in_a_flag_is_escaped(capsys):
    """Scripts with the line ends of Windows pass it."""
    with pytest.raises(SystemExit):
        parse_train_args(['data', '--class-map', 'map.txt\r'])
    assert re.search(r"--class-map 'map\.txt\\r': no such file", capsys.readouterr().err)


@pytest.mark.parametrize('message, most, line', [
    (ValueError(), None, 'ValueError'), ('', None, ''), ('a\r\nb', None, 'a b'), ('a' * 9, 9, 'a' * 9),
    ('a' * 10, 9, 'a' * 6 + '...')])
def test_one_line_names_the_type_of_errors_without_text_and_shortens(message, most, line):
    assert one_line(message, most) == line
