"""The command lines against a frozen table of timm's, and how fast they answer.

`timm_flags.csv` holds the flags of train.py and validate.py at timm 1.0.29.dev0 (August 2026), the newest public
scripts: names, destinations, types, numbers of values, defaults (as JSON) and choices.
"""
import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from timm.loss import LOSS_TYPES

from agmax_timm.loss import AGREEMENT_KINDS
from agmax_timm.options.key_values import KeyValues
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser, validate_parser
from tests.helpers.paths import REPOSITORY

PARSERS = {'train': train_parser, 'validate': validate_parser}
PARSE = {'train': parse_train_args, 'validate': parse_validate_args}
with open(Path(__file__).parent / 'timm_flags.csv', newline='') as f:
    TIMM_FLAGS = list(csv.DictReader(f))

# Additions of timm 1.0.31, as far as its release notes, tests and library show them.
NEWER_THAN_THE_TABLE = {
    '--class-stats', '--loss', '--loss-class-weight', '--loss-pos-weight', '--loss-weight-beta', '--loss-weight-max',
    '--loss-weight-power', '--asl-clip', '--asl-gamma-neg', '--asl-gamma-pos', '--poly-alpha', '--poly-epsilon',
    '--poly-gamma', '--twoway-tn', '--twoway-tp', '--db-focal-gamma', '--db-init-bias', '--db-neg-scale',
    '--lr-decay-fn', '--lr-stable-timescale', '--multilabel-threshold', '--pretrained-cfg-overlay', '--save-epochs',
    '--stop-epoch', '--target-format', '--task',
}
OURS = {
    '--agmax', '--agmax-divergence-reduction', '--agmax-divergence-weight', '--agmax-init-std', '--agmax-loss',
    '--agmax-marginal-images', '--agmax-teacher', '--agmax-teacher-momentum', '--agmax-teacher-ramp',
    '--agmax-teacher-topk', '--agmax-teacher-weight', '--agmax-units', '--agmax-weight',
    '--augment-backend', '--balanced-sampling', '--check-data', '--cutout', '--dry-run', '--early-stop',
    '--early-stop-metric',
    '--early-stop-min-delta', '--freeze', '--fsdp', '--hang-timeout', '--hub-dataset', '--hub-pr', '--hub-private',
    '--hub-replace-card', '--hub-replace-files', '--hub-revision', '--image-memory', '--init-std', '--license',
    '--lighting', '--linear-probe', '--list-recipes', '--log-tensorboard', '--max-damaged', '--nan-policy',
    '--no-pin-mem', '--push-to-hub', '--report', '--result-json', '--exif-orientation', '--val-split-seed',
}
OURS_IN_VALIDATION = {
    '--agreement', '--attack', '--attack-eps', '--attack-norm', '--attack-step-size', '--attack-steps', '--calibration',
    '--corruptions', '--corruptions-dir', '--naflex-patchify-channels-first', '--no-pin-mem', '--report-dir',
    '--result-json', '--severities', '--stress', '--train-split', '--val-split-seed',
}
# Choices that timm asserts later, or never.
STRICTER = {'--amp-dtype': ('float16', 'bfloat16'), '--model-dtype': ('float32', 'float16', 'bfloat16'),
            '--results-format': ('csv', 'json')}
# Types that take what timm's take, and more.
WIDER = {'--recovery-interval': 'interval', '--val-split': 'split', '--split': 'split'}


def kind_of(action):
    if isinstance(action, argparse._StoreTrueAction):
        return 'flag'
    return 'key=value' if isinstance(action, KeyValues) else (action.type or str).__name__


@pytest.mark.parametrize('row', TIMM_FLAGS, ids=lambda row: f"{row['script']}{row['flag']}")
def test_each_flag_equals_that_of_timm(row):
    actions = PARSERS[row['script']]()._actions
    action = next(action for action in actions if action.dest == row['dest'])
    assert set(action.option_strings or [action.dest]) == set(row['flag'].split())
    if row['dest'] == 'config':
        return  # may be given several times here
    assert kind_of(action) == WIDER.get(row['flag'], row['type'])
    assert action.default == json.loads(row['default'])
    if row['type'] != 'flag':
        assert str('' if action.nargs is None else action.nargs) == row['nargs']
        assert action.const == json.loads(row['const'])
    choices = STRICTER.get(row['flag'], tuple(row['choices'].split()))
    assert tuple(action.choices or ()) == choices


def test_all_flags_of_timm_exist_and_others_are_listed():
    assert len([row for row in TIMM_FLAGS if row['script'] == 'train']) == 172 + 1, 'and the positional data'
    assert len([row for row in TIMM_FLAGS if row['script'] == 'validate']) == 56 + 1
    for script, parser in PARSERS.items():
        timm = {flag for row in TIMM_FLAGS if row['script'] == script for flag in row['flag'].split()}
        here = {flag for action in parser()._actions for flag in action.option_strings} - {'-h', '--help'}
        assert timm - here <= {'data'}
        assert here - timm <= NEWER_THAN_THE_TABLE | OURS | (OURS_IN_VALIDATION if script == 'validate' else set())
        if script == 'train':
            assert here - timm == NEWER_THAN_THE_TABLE | OURS


def abbreviations(destinations):
    """Return the option of each unambiguous abbreviation, from {flag: dest}."""
    prefixes = {flag[:end] for flag in destinations for end in range(3, len(flag) + 1) if flag.startswith('--')}
    meanings = {}
    for prefix in prefixes:
        meant = {destinations[prefix]} if prefix in destinations else {
            dest for flag, dest in destinations.items() if flag.startswith(prefix)}
        if len(meant) == 1:
            meanings[prefix] = meant.pop()
    return meanings


@pytest.mark.parametrize('script', PARSERS)
def test_every_abbreviation_of_a_timm_flag_keeps_its_meaning(script):
    timm = {flag: row['dest'] for row in TIMM_FLAGS if row['script'] == script for flag in row['flag'].split()}
    here = {flag: action.dest for action in PARSERS[script]()._actions for flag in action.option_strings
            if not getattr(action, 'yields', False)}
    now = abbreviations(here)
    changed = {prefix for prefix, dest in abbreviations(timm).items() if now.get(prefix) != dest}
    # Where timm's own newer flags share a beginning with an older one, the older one must be written out there too.
    newer = [flag for flag in NEWER_THAN_THE_TABLE if flag in here]
    assert all(any(flag.startswith(prefix) for flag in newer) for prefix in changed), changed


def test_an_abbreviation_means_the_timm_flag_first():
    assert train_parser().parse_args(['--check', '3']).checkpoint_hist == 3
    assert validate_parser().parse_args(['--check', 'x']).checkpoint == 'x'
    assert train_parser().parse_args(['--check-d']).check_data


def test_choices_of_losses_equal_those_of_the_library():
    actions = {action.dest: action for action in train_parser()._actions}
    assert tuple(actions['agmax_loss'].choices) == AGREEMENT_KINDS
    assert tuple(actions['loss'].choices) == LOSS_TYPES


def test_every_group_has_a_title_and_every_flag_a_help():
    for parser in (train_parser(), validate_parser()):
        for group in parser._action_groups:
            assert group.title
            assert [action.option_strings for action in group._group_actions if not action.help] == []


@pytest.mark.parametrize('script', ['train.py', 'validate.py'])
def test_help_and_mistakes_do_not_import_torch(script):
    """The import of timm takes several seconds."""
    code = (f'import runpy, sys\nsys.argv = ["{script}", "--help"]\n'
            f'try:\n    runpy.run_path("{script}", run_name="__main__")\n'
            'finally:\n    assert "torch" not in sys.modules and "timm" not in sys.modules')
    completed = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert '--agmax' in completed.stdout or script == 'validate.py'
    argv = [sys.executable, script, '--no-such-flag']
    completed = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert completed.returncode == 2 and completed.stderr.count('\n') == 1


def shown_defaults(text):
    """The defaults in a help text, by the first name of their flag."""
    entries = re.findall(r'^  (--?\w[\w-]*)(.*(?:\n {10,}.*)*)', text.partition('\noptions:')[2], flags=re.MULTILINE)
    found = {flag: re.findall(r'\(default: ([^)]*)\)', entry) for flag, entry in entries}
    return {flag: values for flag, values in found.items() if values}


@pytest.mark.parametrize('script', PARSERS)
def test_help_shows_every_default(script, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '10000')  # an entry a line
    with pytest.raises(SystemExit):
        PARSE[script](['--help'])
    shown = shown_defaults(capsys.readouterr().out)
    expected, unset = {}, []
    for action in PARSERS[script]()._actions:
        default = action.default
        if default is None or default is False or default in ('', [], {}, argparse.SUPPRESS):
            unset += action.option_strings[:1]  # its help may say what happens without it
        else:
            values = default if isinstance(default, list) else [default]
            expected[action.option_strings[0]] = [' '.join(map(str, values))]
    assert {flag: values for flag, values in shown.items() if flag not in unset} == expected
    assert len(expected) >= {'train': 100, 'validate': 17}[script]


def processor_time(words, times=1):
    before = os.times()
    for _ in range(times):
        subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_takes_little_processor_time():
    """That of 7 starts of Python with argparse, and of 12 on a busy machine. An import of torch takes far more."""
    assert processor_time(['train.py', '--help']) < 3 * processor_time(['-c', 'import argparse'], times=4)
