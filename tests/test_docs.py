"""Commands in docs/ parse, and files that docs/ names exist."""
import configparser
import copy
import re
import shlex

import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

from agmax_timm import AgMaxLoss, AgMaxTask, create_two_view_loader, export, predict, publish
from agmax_timm.options.parse import parse_train_args, parse_validate_args
from agmax_timm.options.parsers import train_parser, validate_parser
from agmax_timm.report import command as report
from agmax_timm.study import command as study
from tests.gpu.table import BEGIN, END, render, sections
from tests.helpers.paths import REPOSITORY
from tools import docs_pages, figures

DOCS = REPOSITORY / 'docs'
PARSERS = {'train.py': parse_train_args, 'validate.py': parse_validate_args, **{
    f'agmax_timm.{name}': module.create_parser().parse_args for name, module in dict(
        predict=predict, report=report, export=export, publish=publish, study=study).items()}}
COMMANDS = [
    (path.name, ' '.join(command.split()))
    for path in sorted(DOCS.glob('*.md'))
    for block in re.findall(r'```bash\n(.*?)\n```', path.read_text(), re.S)
    for command in block.replace('\\\n', ' ').split('\n')
    if not PARSERS.keys().isdisjoint(command.split())]


@pytest.mark.parametrize('document, command', COMMANDS)
def test_commands_parse(document, command, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    words = shlex.split(command)
    at = next(i for i, word in enumerate(words) if word in PARSERS)
    PARSERS[words[at]](words[at + 1:])


def test_all_kinds_of_commands_are_documented():
    named = {word for _, command in COMMANDS for word in command.split()}
    assert len(COMMANDS) >= 30 and PARSERS.keys() <= named


PAGES = [*sorted(DOCS.rglob('*.md')), *(REPOSITORY / name for name in (
    'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'examples/README.md'))]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_linked_and_named_files_exist(path):
    text = path.read_text()
    for target in re.findall(r'\]\((?!https?:)([^)#]+)\)', text):
        assert (path.parent / target).exists(), target
    for target in re.findall(r'`((?:tests|tools|hparams|docs|agmax_timm)/[\w./-]+)`', text):
        assert (DOCS.parent / target).exists(), target


def test_the_table_of_devices_has_every_file_of_the_gpu_tests():
    table = (DOCS / 'benchmarks.md').read_text().split(BEGIN)[1].split(END)[0]
    rows = [line.split(' | ')[0].removeprefix('| ') for line in table.strip().split('\n\n')[0].splitlines()]
    assert rows[2:] == list(sections().values())


def test_the_table_of_devices_counts_only_tests_that_ran():
    def results(kind, **outcomes):
        tests = {f'test_amp.py::{name}': dict(outcome=outcome, measured={}) for name, outcome in outcomes.items()}
        return dict(machine=dict(device='H100' if kind == 'cuda' else 'CPU', kind=kind, torch='2.11.0+cu'), tests=tests)

    on_cpu, on_gpu = results('cpu', a='passed', b='skipped'), results('cuda', a='passed', b='failed')
    heads = [render(files)[0] for files in ([on_cpu], [on_gpu, on_cpu])]
    assert heads == ['| what | CUDA | CPU form, torch 2.11.0 |',
                     '| what | H100, torch 2.11.0 | CPU form, torch 2.11.0 |']
    amp = [next(line for line in render(files) if line.startswith('| AMP')) for files in ([on_cpu], [on_gpu, on_cpu])]
    assert amp[0].endswith('| not run | 1 passed, 1 skipped |')
    assert amp[1].endswith('| 1 passed, 1 failed | 1 passed, 1 skipped |')


@pytest.mark.parametrize('path', sorted(DOCS.rglob('*.md')), ids=lambda path: path.name)
def test_tables_are_short(path):
    tables = re.findall(r'(?:^\|.*\n)+', path.read_text() + '\n', re.M)
    assert all(table.count('\n') - 2 <= 40 for table in tables)


def test_every_page_is_in_the_navigation():
    text = (DOCS.parent / 'mkdocs.yml').read_text()
    pages = re.findall(r': ([\w/]+\.md)$', text, re.M)
    added = [place for place in docs_pages.ADDED.values() if place.endswith('.md')]
    assert sorted(pages) == sorted([*(str(path.relative_to(DOCS)) for path in DOCS.rglob('*.md')), *added])


@pytest.mark.parametrize('script, parser', [('train', train_parser()), ('validate', validate_parser())])
def test_the_reference_has_every_flag_with_its_help(script, parser):
    rows = [line for line in docs_pages.on_page_markdown(f'<!-- flags: {script} -->').splitlines() if line[:3] == '| `']
    assert all(len(re.findall(r'(?<!\\)\|', row)) == (6 if script == 'train' else 5) for row in rows)
    shown = [name for row in rows for name in re.findall(r'`(-[^`]+)`', row.split(' | ')[0])]
    flags = {name for action in parser._actions for name in action.option_strings}
    assert sorted(shown) == sorted(flags - {'-h', '--help', '-c', '--config', '--list-recipes'})
    smoothing = next((row for row in rows if '`--smoothing`' in row), None)
    assert script == 'validate' or '`0.1`' in smoothing.split(' | ')[2]


def test_the_changelog_has_each_group_once():
    for release in (DOCS.parent / 'CHANGELOG.md').read_text().split('\n## ')[1:]:
        groups = re.findall(r'^### (.+)', release, re.M)
        assert groups == [name for name in ('Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security')
                          if name in groups]


def test_the_code_of_the_guide_to_scripts_runs(tmp_path, monkeypatch, gradient_dataset):
    text = (DOCS / 'script.md').read_text()
    script, transforms, average, evaluate, save, resume, loader, memory, loss = re.findall(
        r'```python\n(.*?)\n```', text, re.S)
    assert f'```python\n{script}\n```' in (REPOSITORY / 'README.md').read_text()  # whose test runs it

    monkeypatch.chdir(tmp_path)
    model = timm.create_model('test_resnet', num_classes=8)
    task = AgMaxTask(model, verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    variables = dict(
        torch=torch, create_two_view_loader=create_two_view_loader, dataset=gradient_dataset(8), task=task,
        optimizer=optimizer, device=torch.device('cpu'), validation=[(images, labels)])
    exec(transforms.replace('224', '32').replace('128', '4'), variables)
    for input, target in variables['loader']:
        assert input.shape == (8, 3, 32, 32)
        task(input, target)['loss'].backward()
        optimizer.step()

    first = copy.deepcopy(model.state_dict())
    exec(average.replace('0.9999', '0.5'), {**variables, 'loader': [*variables['loader']][:1]}, found := {})
    last, averaged = model.state_dict(), found['averaged'].state_dict()
    assert averaged.keys() == last.keys()  # no Q-network
    for name, weight in last.items():
        if weight.is_floating_point():
            torch.testing.assert_close(averaged[name], (first[name] + weight.cpu()) / 2)

    exec(evaluate, variables)
    with torch.inference_mode():
        assert variables['correct'] == (model.eval()(images).argmax(1) == labels).sum() and variables['model'] is model
    exec(save, variables)
    saved = copy.deepcopy((task.state_dict(), optimizer.state_dict()))
    optimizer.step()
    exec(resume, variables)
    torch.testing.assert_close((task.state_dict(), optimizer.state_dict()), saved, rtol=0, atol=0)
    plain = timm.create_model('test_resnet', num_classes=8, checkpoint_path='checkpoint.pth.tar')
    torch.testing.assert_close(plain.state_dict(), model.state_dict(), rtol=0, atol=0)

    exec(loader.replace('224', '32').replace('128', '4'), variables)
    assert type(variables['loader']) is DataLoader

    variables.update(model=timm.create_model('test_resnet', num_classes=8), epochs=2)
    exec(memory.replace('224', '32').replace('128', '4'), variables)
    assert variables['task'].memory.seen.all() and variables['update'] == 4 and variables['task'].ramp == 1

    variables = dict(model=torch.nn.Linear(5, 1000), input=torch.randn(8, 5), target=torch.arange(4).repeat(2))
    exec(loss, variables)
    assert variables['joint_logits'].shape == (4, 1000)
    parts = AgMaxLoss()(variables['logits'], variables['joint_logits'], variables['target'])
    assert variables['loss'] == parts['ce'] + parts['agreement'] + parts['divergence']


def test_the_picture_of_results_shows_the_table_of_the_method_card():
    effects = figures.read_effects((DOCS / 'agmax.md').read_text())
    assert ('CIFAR-10, 2,000 images, mean of eight augmentations, the same batch size and rate for both, three seeds',
            [figures.Effect(2.5, (1.1, 3.8))], [figures.Effect(-2.6, (-3.5, -1.8))]) in effects
    with Image.open(DOCS / 'images' / 'results.png') as picture:
        assert picture.text['effects'] == repr(effects), 'run python tools/figures.py'


def test_the_quick_start_lists_all_extras():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / 'setup.cfg')
    table = (DOCS / 'quickstart.md').read_text().split('| extra | for |')[1].split('\n\n')[0]
    listed = [name for row in table.splitlines() for name in re.findall('`([a-z]+)`', row.split(' | ')[0])]
    assert sorted(listed) == sorted(settings['options.extras_require'])


def _anchor(heading):
    """Return the anchor that GitHub and mkdocs give a heading."""
    return re.sub(r'[\s]', '-', re.sub(r'[^\w\s-]', '', heading.lower()).strip())


@pytest.mark.parametrize(
    'page', [*sorted(DOCS.rglob('*.md')), *sorted(REPOSITORY.glob('*.md'))], ids=lambda page: page.name)
def test_links_lead_to_headings_that_exist(page):
    for target, anchor in re.findall(r'\]\(([^()\s#:]*)#([^()\s]+)\)', page.read_text()):
        linked = (page.parent / target).resolve() if target else page
        headings = re.findall(r'^#+ (.+)', linked.read_text(), re.M)
        assert anchor in map(_anchor, headings), f'{target}#{anchor}'
