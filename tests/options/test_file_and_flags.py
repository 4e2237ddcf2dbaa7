"""A value on the command line and in a file of options gives the same option, or the same refusal."""
import contextlib
import io

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agmax_timm.options.declare import declared
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import TrainOptions

NUMBERS = {name: option for name, option in declared(TrainOptions).items()
           if option.kind in (int, float) and not option.several and option.check and not option.convert}


def outcome(argv):
    """The options, or the line that refuses them."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return vars(parse_train_args(argv)), ''
    except SystemExit as end:
        assert end.code == 2
        line, = (line for line in errors.getvalue().splitlines() if ': error: ' in line)
        return None, line


@st.composite
def number_for(draw):
    """An option and a number, often at the edge of its range."""
    name = draw(st.sampled_from(sorted(NUMBERS)))
    if NUMBERS[name].kind is int:
        return name, draw(st.sampled_from([-1, 0, 1, 2, 2 ** 31 - 1, 2 ** 31]) | st.integers(-10, 1000))
    return name, draw(st.sampled_from([-1., 0., 1., 0.5, 1.5, -1e-9, 1 + 1e-9]) | st.floats(-10, 10))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return tmp_path_factory.mktemp('options') / 'options.yaml'


@pytest.mark.slow
@given(number_for())
@settings(max_examples=60)
def test_command_line_and_file_agree(file, drawn):
    name, value = drawn
    file.write_text(yaml.safe_dump({name: value}))
    written, refused = outcome(['data', '-c', str(file)])
    given_, also_refused = outcome(['data', f'{NUMBERS[name].flag}={value!r}'])
    assert bool(refused) == bool(also_refused), (refused, also_refused)
    if written is not None:
        assert written[name] == given_[name] == value and type(written[name]) is type(given_[name])


@given(number_for())
@settings(max_examples=100)
def test_values_outside_the_declared_range_are_refused_by_their_flag(drawn):
    name, value = drawn
    option = NUMBERS[name]
    assume(not option.check.holds(value))
    options, line = outcome(['data', f'{option.flag}={value!r}'])
    assert options is None and option.flag in line and option.check.words in line
