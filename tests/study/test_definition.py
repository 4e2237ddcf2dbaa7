"""The file of a study: options, messages about invalid files, published numbers, and the studies of this package."""
import pytest
import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from agmax_timm.base.errors import OptionError
from agmax_timm.options.parse import parse_train_args
from agmax_timm.study import command, cost
from agmax_timm.study.definition import read_study
from agmax_timm.study.plan import make_runs
from tests.helpers.paths import REPOSITORY
from tests.helpers.studies import SMALL, run_study, write_study

STUDIES = sorted((REPOSITORY / 'hparams' / 'studies').glob('*.yaml'))


def test_dry_run_prints_the_cost_and_trains_nothing(tmp_path, photos, capsys):
    path = write_study(tmp_path, base={**SMALL, 'epochs': 3}, seeds=[0, 5, 9])
    assert run_study(path, '--output', tmp_path / 'out', '--data', photos, '--dry-run') == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if ' -m agmax_timm.study.train ' in line]
    assert len(commands) == 6 and all('--resume auto' in line and str(photos) in line for line in commands)
    # 12 images in batches of 4; half of the runs have two views.
    assert lines[-1].startswith('6 runs, 18 epochs, 54 updates, 324 views; 0 ')
    assert not (tmp_path / 'out').exists()


def test_later_options_override_earlier_ones(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('lr: 0.3\nsmoothing: 0.3\nmixup: 0.3\n')
    study = read_study(write_study(
        tmp_path, base=[{**SMALL, 'lr': 0.1}, 'recipe.yaml'], augmentations={'a': {'smoothing': 0.2, 'mixup': 0.2}},
        methods={'m': ['recipe.yaml', {'mixup': 0.1, 'agmax': True}], 'n': None}))
    m, n = (run.options for run in make_runs(study, 'data', str(tmp_path))[:2])
    assert (m.lr, m.smoothing, m.mixup, m.agmax) == (0.3, 0.3, 0.1, True)
    assert (n.lr, n.smoothing, n.mixup, n.agmax) == (0.3, 0.2, 0.2, False)


def test_methods_may_have_numbers_as_names(tmp_path):
    study = read_study(write_study(
        tmp_path, methods={0.1: {'lr': 0.1}, 2: {'lr': 2.}}, baseline=0.1, comparisons=[[2, 0.1], ['2', '0.1']]))
    assert study.comparisons == [('2', '0.1')] * 2 and study.baseline == '0.1'


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler')
@pytest.mark.parametrize('sched', ['cosine', 'tanh', 'poly', 'wsd', 'rsqrt', 'step', 'multistep', 'plateau', 'constant',
                                   'none'])
@pytest.mark.parametrize('flags', [
    '', '--warmup-prefix', '--stop-epoch 4', '--lr-cycle-limit 2', '--lr-cycle-limit 3 --lr-cycle-mul 1.7',
    '--lr-cycle-limit 4 --lr-cycle-mul 0.6 --warmup-prefix', '--lr-cycle-limit 2 --lr-cycle-mul 2 --stop-epoch 9'])
def test_the_epochs_of_a_run_are_those_of_timms_schedule(sched, flags):
    options = parse_train_args(['data', *flags.split(), '--sched', sched, '--epochs', '20', '--cooldown-epochs', '7',
                                '--warmup-epochs', '3', '--decay-epochs', '5'])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.)
    _, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(options))
    assert cost.epochs_of(options) == (options.stop_epoch or epochs)


def test_a_share_of_each_class_is_not_counted_as_training_images(tmp_path, photos):
    """Of 4 images per class, --val-split 0.1 holds out one. 9 images are left: 4 batches of 2 images."""
    study = read_study(write_study(
        tmp_path, base={**SMALL, 'batch_size': 2, 'val_split': 0.1}, methods={'baseline': None}, seeds=[0, 1]))
    assert cost.updates_and_views(make_runs(study, str(photos), str(tmp_path))) == (8, 16)


def test_a_folder_of_data_that_is_not_read_need_not_exist(tmp_path, capsys):
    """Only a warning, as from train.py. The demo has 1,000 training images."""
    study = read_study(write_study(tmp_path, base={**SMALL, 'dataset': 'demo', 'num_classes': 10}, seeds=[0]))
    runs = make_runs(study, str(tmp_path / 'absent'), str(tmp_path))
    command.check_files(study, runs)
    assert "absent' has no effect with --dataset demo" in capsys.readouterr().err
    assert cost.updates_and_views(runs) == (2 * 250, 3 * 1000)


@pytest.mark.parametrize('flags', [{'initial_checkpoint': 'gone.pth'},
                                   {'pretrained': True, 'pretrained_path': 'gone.pth'}])
def test_missing_initial_weights_are_refused_before_a_run_begins(tmp_path, photos, flags):
    """A run that has begun may have a checkpoint, which replaces them."""
    study = read_study(write_study(tmp_path, base={**SMALL, **flags}, methods={'one': None, 'two': None}, seeds=[0]))
    runs = make_runs(study, str(photos), str(tmp_path / 'output'))
    flag = [*flags][-1].replace('_', '-')
    with pytest.raises(OptionError, match=f"'one, seed 0': --{flag} 'gone.pth': no such file"):
        command.check_files(study, runs)
    for run in runs:
        (tmp_path / 'output' / run.folder).mkdir(parents=True)
    command.check_files(study, runs)


def test_devices_without_a_job_give_a_warning(tmp_path, photos, capsys):
    path = write_study(tmp_path, data=str(photos), seeds=[0])
    devices = ['--dry-run', '--devices', 'cuda:0', 'cuda:1']
    assert run_study(path, *devices) == 0 and run_study(path, *devices, '--jobs', 2) == 0
    line, = capsys.readouterr().err.splitlines()
    assert 'warning: --devices names 2, but --jobs 1 uses only cuda:0: use --jobs 2' in line


def test_options_without_effect_give_a_warning(tmp_path, photos, capsys):
    agmax = dict(agmax=True, agmax_loss='mse')
    path = write_study(tmp_path, data=str(photos), seeds=[0], methods={'mse': agmax, 'heavy': {
        **agmax, 'agmax_divergence_weight': 8.}, 'heavier': {**agmax, 'agmax_divergence_weight': 9.}})
    assert run_study(path, '--dry-run') == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: 'heavy', 'heavier': --agmax-divergence-weight has no effect without --agmax-loss mi"]


def test_another_folder_of_data_gives_a_warning(tmp_path, photos, capsys):
    path, folder = write_study(tmp_path, data=str(photos)), tmp_path / 'out'
    for seed in (0, 1):
        (folder / 'baseline' / f'seed-{seed}').mkdir(parents=True)
        (folder / 'baseline' / f'seed-{seed}' / 'args.yaml').write_text('data_dir: /data/cifar10\n')
    assert run_study(path, '--output', folder, '--dry-run') == 0
    line, = capsys.readouterr().err.splitlines()
    assert f"seed-0' was trained on the data in '/data/cifar10', the study now has '{photos}': " in line
    assert line.endswith('give another --output')


def test_a_folder_with_the_name_of_a_recipe_is_not_the_recipe(tmp_path):
    (tmp_path / 'demo').mkdir()
    study = read_study(write_study(tmp_path, base='demo'))
    assert study.base.options['model'] == 'test_resnet'


BAD = [
    (dict(augmentation={'a': None}), 'unknown key', 'did you mean augmentations?'),
    (dict(base={'modle': 'x'}), "base: unknown option 'modle'", 'did you mean model?'),
    (dict(base='absent.yaml'), 'base: ', 'absent.yaml', 'No such file'),
    (dict(base=7), 'base: expected the path of a recipe', 'got 7'),
    (dict(methods={'a': {'agmax_loss': 'mi2'}}), "methods: 'a': 'agmax_loss': expected one of mi", "'mi2'"),
    (dict(methods={'a': {'seed': 3}}), "seed' cannot be an option of single runs", 'use seeds'),
    (dict(base={'dry_run': True}), "dry_run' cannot be an option of single runs", 'use --dry-run'),
    (dict(base={'check_data': True}), "check_data' cannot be", 'use train.py --check-data'),
    (dict(base={'push_to_hub': 'me/m'}), "push_to_hub' cannot be", 'use agmax_timm.publish'),
    (dict(base={'start_epoch': 3}), "start_epoch' cannot be", 'use another --output'),
    (dict(methods={}), 'methods: expected lines', 'got {}'),
    (dict(methods=None), 'no methods', 'at least one'),
    (dict(methods={'A b': None, 'a-b': None}), 'a-b', 'rename one'),
    (dict(methods={'+': None}), 'cannot be the name of a folder', 'letters'),
    (dict(methods={'a': {'mixup': -1.0}}), "'a': --mixup", '-1'),
    (dict(seeds=[]), 'seeds: expected a list', 'got []'),
    (dict(seeds=[1, 1]), 'seeds: 1 occurs twice', 'drop one'),
    (dict(seeds=[0, 2 ** 32]), '--seed', '4294967296'),
    (dict(seeds=['x']), 'seeds: expected whole numbers', "'x'"),
    (dict(methods={True: None}), 'methods: YAML reads a name as True', 'in quotes'),
    (dict(settings={None: None}), 'settings: YAML reads a name as None', 'in quotes'),
    (dict(baseline=False), 'baseline: expected a name', 'False'),
    (dict(baseline='agmax'), "baseline: 'agmax' is not a method", 'did you mean AgMax?'),
    (dict(metric='top2'), 'metric: must be one of loss, top1, top5', "'top2'"),
    (dict(epoch='first'), 'epoch: must be last or best', "'first'"),
    (dict(data='absent'), 'data: no folder', '--data DIR'),
    (dict(data=None), 'no data', '--data DIR'),
    (dict(published='absent.csv'), 'published: ', 'absent.csv'),
]


@pytest.mark.parametrize('keys, words', [(keys, words) for keys, *words in BAD], ids=[str(case[0]) for case in BAD])
def test_invalid_studies_are_refused_in_one_line(keys, words, tmp_path, photos, capsys):
    path = write_study(tmp_path, **{'data': str(photos), **keys})
    assert run_study(path, '--output', tmp_path / 'out') == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m agmax_timm.study: error: '{path}': ")
    for word in words:
        assert word in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, words', [
    (None, ['No such file']), ('- a\n', ['found a list']), ('a: 1\na: 2\n', ["'a' occurs twice"]),
    ('a: [', ['expected'])])
def test_files_that_are_not_studies_are_refused(content, words, tmp_path, capsys):
    path = tmp_path / 'study.yaml'
    if content is not None:
        path.write_text(content)
    assert run_study(path) == 2
    line, = capsys.readouterr().err.splitlines()
    assert str(path) in line and all(word in line for word in words)


@pytest.mark.parametrize('text, words', [
    ('method,value\nAgMx,1\n', ["method 'AgMx' is not in", 'did you mean AgMax?']),
    ('method,percent\nAgMax,1\n', ['must have the columns method, value', "got 'method', 'percent'"]),
    ('method,value\nAgMax,one\n', ["value must be a number, got 'one'"]),
    ('method,value\nAgMax,1\nAgMax,2\n', ["AgMax' occurs twice"]),
    ('method,value\nbaseline,95.1\nAgMax,95,6\n', ["the row 'AgMax', '95' has too many cells", 'with a point']),
    ('# nothing\n', ['must have the columns', 'got none'])])
def test_published_numbers_that_do_not_fit_are_refused(text, words, tmp_path):
    (tmp_path / 'published.csv').write_text(text)
    with pytest.raises(OptionError) as error:
        read_study(write_study(tmp_path, published='published.csv'))
    for word in [str(tmp_path / 'study.yaml'), str(tmp_path / 'published.csv'), *words]:
        assert word in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_studies_of_this_package_are_valid(path, tmp_path):
    study = read_study(str(path))
    runs = make_runs(study, 'data', str(tmp_path))
    cells = len(study.augmentations) * len(study.settings) * len(study.methods)
    assert len(runs) == cells * len(study.seeds) and len({run.folder for run in runs}) == len(runs)
    unpublished = 8 if path.stem == 'imagenet' else 0  # the baseline with AgMax's initial weights
    assert len(study.published) in (0, cells - unpublished)
    header = ' '.join(line for line in path.read_text().splitlines() if line.startswith('#'))
    assert f'python -m agmax_timm.study hparams/studies/{path.name}' in header and 'Cost: ' in header


def test_the_page_of_studies_lists_those_of_this_package():
    page = (REPOSITORY / 'docs/studies.md').read_text()
    assert STUDIES and [path.name for path in STUDIES if path.name not in page] == []


def test_a_study_in_any_folder_may_use_recipes_of_the_package(tmp_path):
    path = write_study(tmp_path, base='demo', methods={'AgMax': 'method/agmax', 'baseline': 'method/baseline'})
    read = read_study(path)
    assert read.base.options['dataset'] == 'demo' and read.base.options['model'] == 'test_resnet'
    assert [method.options['agmax'] for method in read.methods] == [True, False]
