"""Hook of mkdocs: fill the reference pages from the options, and add files from outside docs/ to the site."""
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ADDED = {'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md', 'examples/README.md': 'examples.md',
         'examples/quickstart.ipynb': 'examples/quickstart.ipynb'}  # file: place in the site
LINKS = {'](../docs/': '](', '](docs/': '](', '](CHANGELOG.md)': '](changelog.md)',
         '](../examples/README.md)': '](examples.md)', '](../examples/': '](examples/',
         '](quickstart.ipynb)': '](examples/quickstart.ipynb)'}  # link in the repository: link in the site
sys.path.insert(0, str(REPOSITORY))  # the package does not have to be installed


def on_files(files, config):
    """Add the pages and the notebook that are not in docs/."""
    from mkdocs.structure.files import File
    for name, place in ADDED.items():
        files.append(File.generated(config, place, content=(REPOSITORY / name).read_text()))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Replace links to files that have another place in the site, and the comments `flags:` and `help:`."""
    for link, site_link in LINKS.items():
        markdown = markdown.replace(link, site_link)
    markdown = re.sub(r'<!-- flags: (\w+) -->', lambda match: flag_tables(match[1]), markdown)
    return re.sub(r'<!-- help: (.+) -->', lambda match: '\n'.join(map(help_text, match[1].split())), markdown)


def flag_tables(script: str) -> str:
    """Return a Markdown table for each group of options of train.py or validate.py."""
    from agmax_timm.options import parsers
    from agmax_timm.options.declare import groups_of
    options = {'train': parsers.TrainOptions, 'validate': parsers.ValidateOptions}[script]
    return '\n\n'.join(_table(group, script) for group in groups_of(options))


def _table(group: type, script: str) -> str:
    from agmax_timm.options.declare import declared
    title = group.__doc__.partition('\n')[0].removesuffix('.')
    rows = [['flag', 'value', 'default', 'meaning', 'on resume'], ['---'] * 5]
    for option in declared(group).values():
        flags = ', '.join(f'`{flag}`' for flag in option.flags) or f'`{option.metavar or option.name}`'
        text = option.help.replace('%(const)s', str(option.const))
        rows.append([flags, _value(option), _default(option.default), _cell(text), option.resume])
    columns = 5 if script == 'train' else 4
    return '\n'.join([f'## {title}', '', *(f"| {' | '.join(row[:columns])} |" for row in rows)])


def _value(option) -> str:
    """What an option takes: its choices, or the name of its value and the condition on it."""
    if option.kind is bool or not option.flags:
        return ''
    if option.choices:
        return ', '.join(f'`{choice}`' for choice in option.choices)
    name = option.metavar or option.name.upper()
    if option.several or option.kind is dict:
        name += ' ...'
    return _cell(f'{name}: {option.check.words}' if option.check else name)


def _default(value) -> str:
    """A default as it is typed, '' if the option is off or not set."""
    if value is None or value is False or value in ('', [], {}):
        return ''
    return f"`{' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def _cell(text: str) -> str:
    """A text in a cell of a table."""
    text = text.replace('%%', '%').replace('|', r'\|').replace('<', '&lt;')
    return re.sub(r'(?<![`\w-])(--[a-z][\w-]*)', r'`\1`', text)


def help_text(command: str) -> str:
    """Return what `python -m agmax_timm.COMMAND --help` prints, under a heading."""
    printed = subprocess.run(
        [sys.executable, '-m', f'agmax_timm.{command}', '--help'], cwd=REPOSITORY, env={**os.environ, 'COLUMNS': '100'},
        check=True, capture_output=True, text=True).stdout
    return f'## {command}\n\n```text\n{printed}```\n'
