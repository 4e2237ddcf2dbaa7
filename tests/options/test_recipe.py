"""What a published run contains: a recipe for train.py, without names of persons and folders, and without secrets."""
import argparse
import functools
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard

from agmax_timm.options.changed_options import changed_options, train_command
from agmax_timm.options.declare import declared
from agmax_timm.options.option_file import convert_options
from agmax_timm.options.parse import parse_train_args
from agmax_timm.options.parsers import TrainOptions, train_parser
from agmax_timm.options.recipe import portable, recipe, redact
from agmax_timm.report.page import Report, render
from agmax_timm.weights.staging import stage

PERSON = 'ann-smith'
FILES, FILES_OR_NUMBERS, LEFT_OUT = (
    [name for name, option in declared(TrainOptions).items() if option.recipe == kind]
    for kind in ('file name', 'file name or numbers', 'left out'))
ACTIONS = {action.dest: action for action in train_parser()._actions if action.dest not in ('help', 'config')}
# Words that an option needs, or that are valid for it; DIR is a folder of the person with the FILES in it.
VALID = {
    'model': ['local-dir:DIR/model'], 'kd_model_name': ['local-dir:DIR/teacher'], 'dataset': ['hfds/DIR/birds'],
    'train_split': ['DIR/some'], 'val_split': ['DIR/val'], 'pretrained_cfg_overlay': ['file=DIR/weights.pth'],
    'model_kwargs': ['weights=DIR/part.pth'], 'opt_kwargs': ['state=DIR/state.pth'], 'resume': ['DIR/last.pth'],
    'data': ['DIR/data'], 'data_dir': ['DIR/data'], 'output': ['DIR/out'], 'experiment': [PERSON],
    'wandb_project': [PERSON], 'wandb_tags': [PERSON, 'b'], 'wandb_resume_id': [PERSON], 'hub_revision': [PERSON],
    'push_to_hub': [f'{PERSON}/net'], 'device_modules': [PERSON], 'image_memory': ['8G'],
    'loss_class_weight': ['DIR/counts.json'],
    'loss_pos_weight': ['DIR/counts.json'], 'license': ['mit'],
}
FLAGS_BESIDE = {
    'wandb_resume_id': ['--resume', 'DIR/last.pth'], 'no_resume_opt': ['--resume', 'DIR/last.pth'],
    **dict.fromkeys(('hub_private', 'hub_revision', 'hub_pr', 'hub_replace_card', 'hub_replace_files'),
                    ['--push-to-hub', 'a/b']),
    'jsd_loss': ['--aug-splits', '2'], 'pretrained_path': ['--pretrained'],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder named after a person. Its files are in the working folder as well."""
    folder, here = tmp_path / PERSON, tmp_path / 'here'
    for place in (folder, here):
        place.mkdir()
        for name in (*FILES, 'counts.json', 'last.pth'):
            (place / name).write_text('x')
    monkeypatch.chdir(here)
    return folder


def words_of(name, folder):
    """The flag of an option with a value that is not its default."""
    action = ACTIONS[name]
    if name in FILES:
        values = [f'DIR/{name}']
    elif name in VALID:
        values = VALID[name]
    elif isinstance(action, argparse._StoreTrueAction):
        values = []
    elif action.choices:
        values = [next(choice for choice in action.choices if choice != action.default)]
    elif action.nargs == 3:
        values = ['3', '32', '32']
    elif name in ('scale', 'ratio', 'cutmix_minmax', 'lr_noise', 'opt_betas'):
        values = ['0.5', '0.6']
    elif action.type is float:
        values = ['0.25']
    else:
        values = ['2'] if action.type is not None else ['word']
    flag = [word for word in action.option_strings if word.startswith('--')][:1]
    return [word.replace('DIR', str(folder)) for word in (*flag, *values, *FLAGS_BESIDE.get(name, []))]


def value_of(name, folder):
    """The value of an option that is not its default."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser._add_action(ACTIONS[name])
    return getattr(parser.parse_known_args(words_of(name, folder))[0], name)


def every_option(folder):
    """Options of a run that sets each one to another value, also those that exclude each other."""
    return {**vars(parse_train_args([])), **{name: value_of(name, folder) for name in ACTIONS}}


@pytest.fixture
def keep_idle(monkeypatch):
    """Keep options without effect in recipes."""
    monkeypatch.setattr('agmax_timm.options.recipe.reset_idle', lambda options: options)


@functools.cache
def usual_recipe():
    return recipe(vars(parse_train_args(['DIR'])))


def test_a_recipe_has_every_option_and_no_name_of_a_person(folder, keep_idle):
    options = every_option(folder)
    default = {name: train_parser().get_default(name) for name in ACTIONS}
    assert [name for name in ACTIONS if options[name] == default[name]] == []
    made = recipe({**options, 'rank': 0, 'world_size': 2, 'explicit': {'lr'}, 'native_amp': True})
    assert set(made) == set(ACTIONS) - set(LEFT_OUT)
    text = yaml.safe_dump(made)
    assert PERSON not in text and str(folder.parent) not in text and '/home' not in text
    assert {name: made[name] for name in FILES} == {name: name for name in FILES}
    assert {made[name] for name in FILES_OR_NUMBERS} == {'counts.json'}
    assert (made['model'], made['dataset'], made['train_split']) == ('local-dir:model', 'hfds/./birds', 'some')
    assert made['pretrained_cfg_overlay'] == {'file': 'weights.pth'}


@pytest.mark.parametrize('name', ACTIONS)
def test_recipe_and_command_of_each_option_are_accepted_and_equal(name, folder, tmp_path, monkeypatch, keep_idle):
    # Each option alone has no effect.
    monkeypatch.setattr('agmax_timm.options.combinations.check_combinations', lambda *_: ())
    words = words_of(name, folder)
    if name not in ('data', 'data_dir'):
        words = ['DIR', *words]
    try:
        options = vars(parse_train_args(words))
    except SystemExit:  # it needs others beside it: the type at least is right
        assert name not in LEFT_OUT + FILES, words
        made = recipe({name: value_of(name, folder)})
        assert convert_options(made, train_parser()) == made
        return
    made = recipe(options)
    # A file of all options is slow.
    changed = {name: value for name, value in made.items() if value != usual_recipe().get(name)}
    (tmp_path / 'train_hparams.yaml').write_text(yaml.safe_dump(changed))
    assert recipe(vars(parse_train_args(['DIR', '-c', str(tmp_path / 'train_hparams.yaml')]))) == made
    command = shlex.split(train_command(options))
    assert command[:3] == ['python', 'train.py', 'DIR']
    assert recipe(vars(parse_train_args(command[2:]))) == made
    assert PERSON not in f'{made} {command}' and (name in changed_options(options)) == (
        name not in LEFT_OUT)


@pytest.mark.parametrize('words, dropped', [
    ('--lr 0.1 --lr-base-scale sqrt', '--lr-base-scale sqrt'),  # a checkpoint has both, although nobody gave them
    ('--sync-bn --dist-bn=', '--dist-bn='),
    ('--initial-checkpoint FILE --pretrained --pretrained-path FILE', '--pretrained --pretrained-path FILE'),
    ('--no-aug --hflip 0.1 --scale 0.5 1', '--hflip 0.1 --scale 0.5 1'),
    ('--input-size 3 32 32 --img-size 64', '--img-size 64'),
    ('--lr-base 0.1 --lr-base-scale sqrt --dist-bn broadcast --sched none', ''),
])
def test_a_recipe_has_no_option_without_effect(words, dropped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'FILE').write_text('x')
    made = recipe(vars(parse_train_args(['DIR', *words.split()])))
    assert ('has no effect' in capsys.readouterr().err) == bool(dropped)
    alone = recipe(vars(parse_train_args(['DIR', *words.replace(dropped, '').split()])))
    assert made == alone
    (tmp_path / 'train_hparams.yaml').write_text(yaml.safe_dump(made))
    assert recipe(vars(parse_train_args(['DIR', '-c', 'train_hparams.yaml']))) == alone
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('words, name', [
    ('--sched step --decay-epochs 200 --epochs 150', 'decay_epochs'),  # the default, 90, would lower the rate
    ('--sched multistep --decay-milestones 300 400 --epochs 200', 'decay_milestones'),
])
def test_a_recipe_keeps_an_option_without_effect_whose_default_has_one(words, name):
    options = vars(parse_train_args(['DIR', *words.split()]))
    assert recipe(options)[name] == options[name]


def test_former_names_of_options_are_replaced():
    assert recipe({'agmax': True, 'agmax_init_std': 0.2}) == {'agmax': True, 'init_std': 0.2}
    assert train_command({'agmax': True, 'agmax_init_std': 0.2}) == 'python train.py --agmax --init-std 0.2'


def test_staged_files_and_reports_name_no_person_and_no_folder(folder, make_saved, tmp_path):
    run = every_option(folder)
    for dataset in ('', f'hfds/{folder}/birds', f'wds/{folder}/birds-{{0..9}}.tar'):
        options = {**run, 'dataset': dataset, 'agmax': True, 'task': 'classification', 'tta': 0}
        stage(make_saved(options=options), tmp_path / 'hub')
        for path in (tmp_path / 'hub').iterdir():
            content = path.read_bytes().decode('latin-1')
            assert PERSON not in content and str(tmp_path) not in content, path
        card = ModelCard.load(tmp_path / 'hub' / 'README.md')
        assert '| class_map' not in card.content and 'split val' in card.text
    text = render(Report(title='run', about='', trained='', headline=[], notes=[], command=train_command(run),
                       changed=changed_options(run), options=recipe(run), versions={}, curves={}))
    assert PERSON not in text and str(tmp_path) not in text


@pytest.mark.parametrize('value, expected', [
    ('/home/ann smith/my data/x.txt', 'x.txt'),
    ('C:\\Users\\ann\\x.pth', 'x.pth'),
    ('~/x.pth', 'x.pth'),
    ('file:///home/ann/x.pth', 'file:x.pth'),
    ('local-dir:../ann/net', 'local-dir:net'),
    ('hfds//home/ann/birds', 'hfds/./birds'),
    ('wds/pipe:cat /home/ann/x.tar', 'wds/pipe:cat x.tar'),
    ('https://ann:secret@host/x?token=abc&size=1', 'https://host/x?token=TOKEN&size=1'),
    (['hf_' + 30 * 'a', {'x': ('/home/ann/y', 3)}], ['TOKEN', {'x': ('y', 3)}]),
    *((same, same) for same in (
        'hf_hub:ann/net@main', 'hfds/ylecun/mnist', 'rand-m9-mstd0.5', 'torch/image_folder', '1/2', 0.5, None, True,
        '')),
])
def test_values_lose_folders_and_secrets(value, expected):
    assert portable(value) == expected


def test_messages_lose_folders():
    assert redact("no such folder or tar file: /home/ann/birds, see '/tmp/a/b.csv' and https://host/a/b") == (
        "no such folder or tar file: birds, see 'b.csv' and https://host/a/b")
