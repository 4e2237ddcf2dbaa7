"""Numbers on a card: the command beside them gives the same digits. If none can, the card states the reason instead."""
import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial

import datasets
import pytest
from PIL import Image

from agmax_timm import export, publish
from agmax_timm.evaluation.compare_staged import compare_on_data
from agmax_timm.evaluation.prediction import Predictor, options_of
from agmax_timm.options.changed_options import validate_command
from agmax_timm.options.declare import declared
from agmax_timm.options.parsers import TrainOptions, ValidateOptions
from agmax_timm.weights import staging
from agmax_timm.weights.card import model_card
from agmax_timm.weights.hub import HubError
from agmax_timm.weights.measured import measured, unrepeatable
from agmax_timm.weights.saved_model import read_model
from agmax_timm.weights.staging import load_folder, stage
from tests.helpers.predictions import logits_of

TINY = ['--model', 'test_resnet', '--img-size', '32', '--epochs', '1']
NAFLEX = ['--model', 'naflexvit_base_patch16_gap', '--model-kwargs', 'embed_dim=16', 'depth=1', 'num_heads=2',
          '--epochs', '1', '--naflex-loader', '--naflex-train-seq-lens', '4', '9', '--naflex-max-seq-len', '9']
# Options that decide what an evaluation measures.
RUNS = {
    'plain': TINY,
    'HSV': [*TINY, '--input-img-mode', 'HSV'],
    'one channel': [*TINY, '--in-chans', '1', '-vb', '3'],
    'four channels': [*TINY, '--in-chans', '4'],
    'CMYK': [*TINY, '--in-chans', '4', '--input-img-mode', 'CMYK'],
    'float pixels': [*TINY, '--in-chans', '1', '--input-img-mode', 'F', '--no-prefetcher', '--color-jitter', '0'],
    'size, crop and colours': [
        '--model', 'test_resnet', '--epochs', '1', '--input-size', '3', '40', '32', '--crop-pct', '0.6',
        '--interpolation', 'nearest', '--mean', '0.2', '0.3', '0.4', '--std', '0.5', '0.2', '0.3'],
    'configuration': [*TINY, '--pretrained-cfg-overlay', 'crop_pct=0.7', 'interpolation=bilinear', 'crop_mode=squash'],
    'split': [*TINY, '--val-split', 'train'],
    'bfloat16': [*TINY, '--amp', '--amp-dtype', 'bfloat16'],
    'bfloat16 weights': [*TINY, '--model-dtype', 'bfloat16'],
    'channels last': [*TINY, '--channels-last'],
    'EMA': [*TINY, '--model-ema', '--model-ema-decay', '0.5'],
    'NaFlex': NAFLEX,
    'NaFlex, channels first': [*NAFLEX, '--naflex-patchify-channels-first'],
}
WITHOUT_EFFECT = {
    'help', 'data', 'data_dir', 'workers', 'pin_mem', 'check_data', 'dataset_download', 'dataset_trust_remote_code',
    'device', 'seed', 'pretrained', 'batch_size', 'dataset', 'naflex_loader', 'no_pin_mem', 'result_json'}


def card_of(run, folder):
    """The card of a staged run."""
    stage(read_model(str(run), use_ema=None), folder)
    return (folder / 'README.md').read_text()


def command_on(card, data, folder):
    """The arguments of validate.py on the card, with this data and folder."""
    line, = re.findall(r'^python validate\.py (.+)$', card, re.M)
    return [{'DIR': str(data), 'local-dir:.': f'local-dir:{folder}'}.get(word, word) for word in shlex.split(line)]


def table(card):
    """The numbers on a card, by column title."""
    titles, values = re.search(r'^(\| (?:Top|Mean).+)\n\|[-|]+\n(.+)$', card, re.M).groups()
    return dict(zip(titles.strip('| ').split(' | '), values.strip('| ').split(' | ')))


def numbers(results):
    names = {'Top-1 accuracy (%)': 'top1', 'Mean average precision (%)': 'map',
             'F1 over labels and images (%)': 'micro_f1', 'Loss': 'loss'}
    return {title: f'{results[name]:.4f}' for title, name in names.items() if name in results}


@pytest.mark.parametrize('kind', RUNS)
def test_the_command_on_the_card_gives_its_numbers(kind, train_once, photos, results_of, tmp_path):
    card = card_of(train_once(*RUNS[kind]), tmp_path / 'hub')
    words = command_on(card, photos, tmp_path / 'hub')
    assert numbers(results_of(*words)) == table(card)
    value = re.search(r'^  - name: test_resnet.*?value: ([\d.]+)', card, re.M | re.S)
    assert value is None or f'{float(value[1]):.4f}' == table(card)['Top-1 accuracy (%)']


def test_the_card_states_the_sequence_length_of_naflex(train_once, photos, results_of, tmp_path):
    card = card_of(train_once(*NAFLEX), tmp_path / 'hub')
    assert 'at up to 9 patches (NaFlex).' in card
    assert ', at 384 x 384' not in card
    words = ['--model', f'local-dir:{tmp_path / "hub"}', '--naflex-loader', '--naflex-max-seq-len']
    assert numbers(results_of(photos, *words, 9)) == table(card) != numbers(results_of(photos, *words, 4))


def test_the_mode_of_the_images_is_part_of_the_folder(train_once, photos, results_of, tmp_path):
    """For --model local-dir:, for its weights as a checkpoint, and for predict."""
    run, folder = train_once(*RUNS['HSV']), tmp_path / 'hub'
    card = card_of(run, folder)
    assert ".convert('HSV')" in card and ', in HSV.' in card and 'pipeline(' not in card
    plain = ['--model', f'local-dir:{folder}']
    assert numbers(results_of(photos, *plain)) == table(card)
    assert numbers(results_of(photos, '--checkpoint', folder / 'model.safetensors')) == table(card)
    assert numbers(results_of(photos, *plain, '--input-img-mode', 'RGB')) != table(card)
    common = dict(device='cpu', workers=0, batch_size=12)
    paths = sorted(map(str, (photos / 'val').rglob('*.jpg')))
    one, other = (logits_of(Predictor(options), paths) for options in (
        options_of(model=plain[1], **common),
        options_of(checkpoint=str(run / 'model_best.pth.tar'), **common)))
    assert one.equal(other)


def test_a_class_map_is_replaced_by_the_class_names_of_the_model(train_once, photos, results_of, refusal, tmp_path):
    path = tmp_path / 'map.txt'
    path.write_text('cat\nant\nbee\n')
    card = card_of(train_once(*TINY, '--class-map', str(path)), tmp_path / 'hub')
    path.unlink()
    words = command_on(card, photos, tmp_path / 'hub')
    assert words[words.index('--class-map') + 1] == 'model'
    assert numbers(results_of(*words)) == table(card)
    assert '--class-map model' in refusal(photos, '--model', f'local-dir:{tmp_path / "hub"}', built=True)


@pytest.mark.parametrize('labels', [['labels'], ['dense', '--target-format', 'multihot']], ids=['indices', 'multihot'])
def test_the_command_gives_the_numbers_of_several_labels_per_image(labels, train_once, results_of, tmp_path):
    (tmp_path / 'data').mkdir()
    for split, count in (('train', 8), ('test', 5)):
        rows = [[j for j in range(3) if i >> j & 1] for i in range(count)]
        datasets.Dataset.from_dict({
            'picture': [Image.new('RGB', (36, 32), tuple(200 * (j in row) for j in range(3))) for row in rows],
            'labels': rows,
            'dense': [[int(j in row) for j in range(3)] for row in rows],
        }, features=datasets.Features({
            'picture': datasets.Image(), 'labels': datasets.Sequence(datasets.Value('int64')),
            'dense': datasets.Sequence(datasets.Value('int64'))})).to_parquet(str(tmp_path / f'data/{split}.parquet'))
    data = f'hfds/{tmp_path / "data"}'
    card = card_of(train_once(
        *TINY, '--data-dir', str(tmp_path), '--dataset', data, '--val-split', 'test', '--task', 'multilabel',
        '--input-key', 'picture', '--multilabel-threshold', '0.45', '--target-key', *labels), tmp_path / 'hub')
    words = [data if word == 'hfds/./data' else word for word in command_on(card, tmp_path, tmp_path / 'hub')]
    assert numbers(results_of(*words)) == table(card)


@pytest.mark.parametrize('options, reason', [
    (dict(tta=3), 'each 3 images in a row'),
    (dict(world_size=2, dist_bn=''), '--dist-bn'),
    (dict(class_map='map.txt'), '--class-map'),
])
def test_numbers_that_cannot_be_repeated_are_left_out_with_the_reason(make_saved, tmp_path, options, reason):
    saved = make_saved()
    fields = dict(class_map={'ant': 0, 'wasp': 0, 'bee': 1, 'cat': 2}) if 'class_map' in options else {}
    saved = replace(saved, options={**saved.options, **options}, **fields)
    stage(saved, tmp_path / 'hub')
    card = (tmp_path / 'hub' / 'README.md').read_text()
    results = re.search('## Results\n\n(.*?)\n<!-- ', card, re.S)[1]
    assert results.startswith('No number is given') and reason in results and results.count('\n') == 0
    assert 'model-index' not in card and '66.66' not in card and 'validate.py' not in card
    assert '- Its accuracy is not known.' in card
    assert not {'summary.csv', 'curves.png'} & {path.name for path in (tmp_path / 'hub').iterdir()}


def test_numbers_that_can_be_repeated_are_kept(make_saved):
    saved = make_saved()
    for options in (dict(tta=1), dict(world_size=2, dist_bn='reduce'), dict(world_size=2, dist_bn='', sync_bn=True),
                    dict(world_size=2), dict(class_map='map.txt')):
        assert not unrepeatable(replace(saved, options={**saved.options, **options}))
    assert measured(replace(saved, metrics=dict(top1=50., loss=float('nan')))) == dict(top1=50.)


def test_a_changed_model_has_no_numbers(ema_run):
    """Another pooling, number of classes or architecture on the command line of export changes the model."""
    assert 'top1' in read_model(str(ema_run), architecture='test_resnet', num_classes=3).metrics
    assert 'top1' not in read_model(str(ema_run), model_kwargs=dict(global_pool='max')).metrics


def test_every_option_of_an_evaluation_is_considered():
    """Each option of both scripts is in the folder, in the command, or without effect."""
    kinds = {name: option.evaluation for name, option in declared(ValidateOptions).items()
             if name in declared(TrainOptions)}
    decisive = ('input', 'data', 'labels', 'precision', 'compilation')
    of_a_share = {'train_split', 'val_split_seed'}
    assert {name for name, kind in kinds.items() if kind not in decisive} <= WITHOUT_EFFECT | of_a_share
    words = validate_command({'val_split': '0.1', 'train_split': 'all', 'val_split_seed': 3}, 'x')
    assert '--split 0.1' in words and '--train-split all' in words and '--val-split-seed 3' in words
    values = {'class_map': 'map.txt', 'amp_dtype': 'bfloat16', 'multilabel_threshold': 0.3, 'naflex_max_seq_len': 9}
    for name in (name for name, kind in kinds.items() if kind in decisive[1:] and name != 'dataset'):
        value = values.get(name, True)
        assert f"--{name.replace('_', '-')}" in validate_command({name: value}, 'x').split(), name


def test_arguments_of_the_command_are_quoted():
    options = dict(data_dir='/home/ann/data', dataset='', val_split='val[:50%]', batch_size=8, input_key='my image')
    assert validate_command(options, "'local-dir:.'") == (
        "python validate.py DIR --model 'local-dir:.' --pretrained --input-key 'my image' "
        "--batch-size 8 --split 'val[:50%]'")


def test_a_card_without_options_has_no_command(make_saved):
    card = model_card(make_saved(options={}), 'test_resnet', [1, 96]).content
    assert 'validate.py' not in card


# ---- The staged folder and its run on the images of the run ----

def staged_wrongly(saved, folder, change):
    """Stage a folder whose config.json is changed, with the check that export and publish make."""
    def spoil_and_check(staged):
        config = json.loads((staged / 'config.json').read_text())
        change(config['pretrained_cfg'])
        (staged / 'config.json').write_text(json.dumps(config))
        load_folder(staged)  # plain timm has no objection
        compare_on_data(saved, staged)
    stage(saved, folder, check=spoil_and_check)


@pytest.mark.parametrize('kind', ['plain', 'HSV', 'float pixels', 'size, crop and colours', 'configuration', 'NaFlex'])
def test_staged_folder_gives_the_logits_of_its_run(kind, train_once, tmp_path, caplog):
    with caplog.at_level('INFO'):
        staged_wrongly(read_model(str(train_once(*RUNS[kind])), use_ema=None), tmp_path / 'hub', lambda config: None)
    assert 'logits of the run on 12 validation images' in caplog.text


@pytest.mark.parametrize('kind, change, said', [
    ('plain', dict(mean=[0.4, 0.5, 0.6]), 'mean is [0.4, 0.5, 0.6], in the run (0.5, 0.5, 0.5)'),
    ('plain', dict(std=[0.4, 0.5, 0.6]), 'std is [0.4, 0.5, 0.6]'),
    ('plain', dict(crop_pct=0.7), 'crop_pct is 0.7, in the run 0.95'),
    ('plain', dict(crop_mode='squash'), 'crop_mode is squash, in the run center'),
    ('plain', dict(interpolation='nearest'), 'interpolation is nearest, in the run bilinear'),
    ('plain', dict(input_size=[3, 48, 48]), 'input_size is (3, 48, 48), in the run (3, 32, 32)'),
    ('plain', dict(notes=['input_img_mode=HSV']), 'input_img_mode is HSV, in the run RGB'),
    ('HSV', dict(notes=[]), 'input_img_mode is RGB, in the run HSV'),
    ('NaFlex', dict(interpolation='nearest'), 'interpolation is nearest, in the run bicubic'),
])
def test_folder_with_another_preprocessing_is_refused(kind, change, said, train_once, tmp_path):
    saved = read_model(str(train_once(*RUNS[kind])), use_ema=None)
    with pytest.raises(HubError) as error:
        staged_wrongly(saved, tmp_path / 'hub', lambda config: config.update(change))
    assert 'does not give the logits of ' in str(error.value) and f'; {said}' in str(error.value)
    assert '\n' not in str(error.value) and not (tmp_path / 'hub').exists()


def test_mode_of_another_number_of_channels_is_refused(train_once, tmp_path):
    saved = read_model(str(train_once(*TINY)), use_ema=None)
    with pytest.raises(HubError, match='validation images of the run: .*CMYK.* 4 channels'):
        staged_wrongly(saved, tmp_path / 'hub', lambda config: config.update(notes=['input_img_mode=CMYK']))


@pytest.mark.parametrize('command', ['export', 'publish'])
def test_commands_check_the_preprocessing(command, train_once, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(train_once(*TINY), tmp_path / 'run')
    write = staging.save_config_for_hf
    monkeypatch.setattr(staging, 'save_config_for_hf', lambda *args, data_config, **kwargs: write(
        *args, data_config={**data_config, 'crop_pct': 0.6}, **kwargs))
    monkeypatch.setattr('agmax_timm.weights.hub.check_destination', lambda *args, **kwargs: None)
    argv = {'export': [run, tmp_path / 'hub'], 'publish': [run, 'ann/net']}[command]
    with pytest.raises(SystemExit) as end:
        {'export': export, 'publish': publish}[command].main(list(map(str, argv)))
    assert end.value.code == 2 and 'crop_pct is 0.6, in the run 0.95' in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob('config.json'))


@pytest.mark.parametrize('options, reason', [
    (dict(data_dir='/nowhere'), '/nowhere'), (dict(val_split=''), 'the run had none'),
    (dict(dataset='hfds/ann/bees'), "--dataset 'hfds/ann/bees' is on the Hub"),
    (dict(model=None), 'the options of the run are not known')])
def test_missing_data_is_logged(options, reason, train_once, tmp_path, caplog):
    saved = read_model(str(train_once(*TINY)), use_ema=None)
    saved = replace(saved, options={**saved.options, **options})
    with caplog.at_level('INFO'):
        stage(saved, tmp_path / 'hub', check=partial(compare_on_data, saved))
    said, = (record for record in caplog.records if 'preprocessing' in record.message)
    assert 'is not checked' in said.message and reason in said.message
    assert said.levelname == ('WARNING' if saved.options['model'] else 'INFO')
