"""Hook of mkdocs: fill the reference pages from the commands, add CONTRIBUTING.md and CHANGELOG.md to the site."""
import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ADDED = ('CONTRIBUTING.md', 'CHANGELOG.md')
sys.path.insert(0, str(REPOSITORY))  # the package does not have to be installed


def on_files(files, config):
    """Add the files of the repository's root that are pages too."""
    from mkdocs.structure.files import File
    for name in ADDED:
        content = (REPOSITORY / name).read_text().replace('](docs/', '](').replace('](CHANGELOG.md)', '](changelog.md)')
        files.append(File.generated(config, name.lower(), content=content))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Replace the comments `flags:` and `help:` by what the commands declare."""
    markdown = re.sub(r'<!-- flags: (\w+) -->', lambda match: flag_tables(match[1]), markdown)
    return re.sub(r'<!-- help: (.+) -->', lambda match: '\n'.join(map(help_text, match[1].split())), markdown)


def flag_tables(script: str) -> str:
    """Return a Markdown table for each group of flags of train.py or validate.py."""
    from agmax_timm.options import parsers
    parser = getattr(parsers, f'{script}_parser')()
    return '\n\n'.join(_table(group) for group in parser._action_groups if group._group_actions)


def _table(group: argparse._ArgumentGroup) -> str:
    from agmax_timm.base.command_line import default_text
    title = {'positional arguments': 'data', 'options': 'general'}.get(group.title, group.title)
    rows = [f'## {title[:1].upper()}{title[1:]}', '', '| flag | value | default | meaning |', '|---|---|---|---|']
    for action in group._group_actions:
        flags = ', '.join(f'`{name}`' for name in action.option_strings) or f'`{action.metavar or action.dest}`'
        default = default_text(action) if action.option_strings else ''
        rows.append(f"| {flags} | {_value(action)} | {f'`{default}`' if default else ''} | {_cell(action.help)} |")
    return '\n'.join(rows)


def _value(action: argparse.Action) -> str:
    """What an option takes: its choices, or the name of its value."""
    if action.nargs == 0:
        return ''
    if action.choices:
        return ', '.join(f'`{choice}`' for choice in action.choices)
    metavar = action.metavar or action.dest.upper()
    names = ' '.join(metavar) if isinstance(metavar, tuple) else metavar
    return f"{names}{' ...' if action.nargs in ('*', '+') else ''}" if action.option_strings else ''


def _cell(text: str) -> str:
    """A help text in a cell of a table."""
    text = text.replace('%%', '%').replace('|', r'\|').replace('<', '&lt;')
    return re.sub(r'(?<![`\w-])(--[a-z][\w-]*)', r'`\1`', text)


def help_text(command: str) -> str:
    """Return what `python -m agmax_timm.COMMAND --help` prints, under a heading."""
    printed = subprocess.run(
        [sys.executable, '-m', f'agmax_timm.{command}', '--help'], cwd=REPOSITORY, env={**os.environ, 'COLUMNS': '100'},
        check=True, capture_output=True, text=True).stdout
    return f'## {command}\n\n```text\n{printed}```\n'
