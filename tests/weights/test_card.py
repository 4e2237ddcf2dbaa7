"""The model card: metadata that the Hub accepts, code that runs, links that resolve. Unknown facts are left out."""
import dataclasses
import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from agmax_timm.options.declare import values
from agmax_timm.options.parse import parse_train_args
from agmax_timm.weights.base_model import base_of
from agmax_timm.weights.card import _hyperparameters, dataset_of, hub_dataset_of, model_card, tag_of
from agmax_timm.weights.saved_model import read_model
from agmax_timm.weights.staging import FILES, recipe, stage
from tests.helpers.plain_timm import run_in_plain_timm


def card_of(saved, **kwargs):
    return model_card(saved, 'test_resnet', [1, 96], [[1, 32, 16, 16]], **kwargs)


def headings(text):
    return re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M)


def test_the_metadata_are_read_back_unchanged(staged):
    data = ModelCard((staged / 'README.md').read_text()).data.to_dict()
    assert data == ModelCard.load(staged / 'README.md').data.to_dict()
    results = data.pop('model-index')
    assert data == {
        'library_name': 'timm', 'pipeline_tag': 'image-classification', 'license': 'other',
        'tags': ['image-classification', 'timm', 'agmax']}
    assert results == [{'name': 'test_resnet.agmax_photos', 'results': [{
        'task': {'type': 'image-classification', 'name': 'Image classification'},
        'dataset': {'type': 'photos', 'name': 'photos', 'split': 'val'},
        'metrics': [{'type': 'accuracy', 'value': 66.6667, 'name': 'Top-1 accuracy (%)'}]}]}]


def test_top5_is_shown_for_more_than_five_classes(make_saved):
    metrics = card_of(make_saved(num_classes=6)).data.to_dict()['model-index'][0]['results'][0]['metrics']
    assert [metric['value'] for metric in metrics] == [66.6667, 100.0]


def test_unknown_facts_are_left_out(make_saved, saved):
    full = headings(card_of(saved, recipe=recipe(saved.options), curves=True).content)
    assert full == ['test_resnet.agmax_photos', 'Usage', 'With timm', 'With transformers', 'Feature maps', 'Embeddings',
                    'Results', 'Classes', 'Training', 'Limits', 'Citation']
    bare = make_saved(options={}, metrics={}, versions={}, run_dir=None)
    card = model_card(bare, 'test_resnet', [1, 96])
    assert headings(card.content) == [
        'test_resnet.agmax_timm', 'Usage', 'With timm', 'With transformers', 'Embeddings', 'Classes', 'Limits',
        'Citation']
    assert {'datasets', 'base_model', 'model-index'} & set(card.data.to_dict()) == set()
    assert not re.search(r'None|nan|\[\]|photos', card.content)
    broken = card_of(make_saved(metrics=dict(top1=float('nan'), loss=float('inf'))))
    assert 'Results' not in headings(broken.content) and 'model-index' not in broken.data.to_dict()


@pytest.mark.parametrize('known', [True, False])
def test_no_section_is_empty(make_saved, known):
    saved = make_saved() if known else make_saved(options={}, metrics={})
    text = card_of(saved, recipe=recipe(saved.options), curves=known).content
    text = re.sub('<!--.*?-->', '', text)
    parts = re.split(r'^(#+) .+$', re.sub('```python\n.*?```', '```', text, flags=re.S), flags=re.M)[1:] + ['#']
    for level, content, following in zip(parts[::2], parts[1::2], parts[2::2]):
        assert content.strip() or len(following) > len(level)  # a heading directly above its first sub-heading


def test_links_resolve(staged):
    text = (staged / 'README.md').read_text()
    local = re.findall(r'\]\((?!http)([^)]+)\)', text)
    assert local == ['curves.png', 'train_hparams.yaml']
    assert all((staged / name).is_file() and name in FILES for name in local)
    assert re.findall(r'\]\((http[^)]+)\)', text) == [
        'https://github.com/huggingface/pytorch-image-models', 'https://arxiv.org/abs/2110.10536']


def test_both_works_are_cited(saved):
    text = card_of(saved).content
    assert len(re.findall(r'```bibtex\n@\w+\{', text)) == 2
    for words in ('Atienza', 'WACV', '2110.10536', 'Ross Wightman', '10.5281/zenodo.4414861'):
        assert words in text


def test_synsets_are_shown_in_words(make_saved, tmp_path):
    stage(make_saved(class_names=['n12620546', 'n04399382', 'other']), tmp_path)
    code = re.search(r'```python\n(.*?)\n```', (tmp_path / 'README.md').read_text(), re.S)[1]
    Image.new('RGB', (40, 50), 'red').save(tmp_path / 'image.jpg')
    printed = run_in_plain_timm(code, cwd=tmp_path)
    assert 'hip, rose hip, rosehip' in printed and 'n1262' not in printed


def test_the_table_contains_only_changed_options(saved):
    text = card_of(saved, recipe=recipe(saved.options)).content
    assert re.findall(r'^\| (\w+) \| ', text, re.M)[1:] == [
        'agmax_weight', 'batch_size', 'model', 'scale', 'opt', 'epochs', 'lr', 'world_size']
    assert '| scale | [0.08, 1.0] |' in text


def test_a_long_value_is_one_row_of_the_table(saved):
    patterns = [f'layer{number}.*' for number in range(20)]
    text = card_of(saved, recipe={**recipe(saved.options), 'freeze': patterns}).content
    assert f"| freeze | [{', '.join(patterns)}] |\n" in text


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (2, 'LA'), (3, 'RGB'), (4, 'RGBA'), (5, None)])
def test_the_code_reads_an_image_in_the_mode_of_training(make_saved, channels, mode):
    code = card_of(make_saved(in_chans=channels)).content
    assert re.findall(r"\.convert\('(.*?)'\)", code) == ([mode] if mode else [])
    assert ('torch.rand(1, 5, 32, 32)' in code) == (mode is None)


def test_the_code_runs_in_the_folder_without_this_package(make_saved, tmp_path):
    """All blocks in their order, with the shapes in their comments."""
    printed = ''
    for channels in (1, 3, 5):
        folder = tmp_path / f'{channels} channels'
        stage(make_saved(in_chans=channels), folder)
        Image.new('RGB', (40, 50), 'red').save(folder / 'image.jpg')
        code = '\n'.join(re.findall(r'```python\n(.*?)\n```', (folder / 'README.md').read_text(), re.S))
        shapes = [json.loads(shape) for shape in re.findall(r'# (\[[\d, ]+\])', code)]
        assert len(shapes) == 6 and code.count('local-dir:.') == 3
        printed += run_in_plain_timm(
            f'{code}\nassert [list(x.shape) for x in [*maps, embedding]] == {shapes}', cwd=folder)
    assert all(printed.count(name) == 4 for name in ('ant', 'bee', 'cat'))  # by timm, and of RGB by transformers


@pytest.mark.parametrize('options, expected', [
    ({}, None),
    ({'dataset': 'demo'}, ('fashion_mnist', 'a subset of Fashion-MNIST')),
    ({'dataset': 'hfids/timm/mini-imagenet'}, ('timm/mini-imagenet', 'timm/mini-imagenet')),
    ({'dataset': 'hfds/mnist'}, ('mnist', 'mnist')),
    ({'dataset': 'hfds/../bees'}, ('bees', 'bees')),
    ({'data_dir': '/data/my', 'hub_dataset': 'ann/bees'}, ('ann/bees', 'ann/bees')),
    ({'dataset': 'hfds//home/ann/bees'}, ('bees', 'bees')),
    ({'dataset': 'torch/cifar10', 'data_dir': '/data'}, ('cifar10', 'cifar10')),
    ({'dataset': '', 'data_dir': '/home/ann/My Photos!/'}, ('my-photos-', 'My Photos!')),
    ({'dataset': '', 'data': '/'}, None),
])
def test_the_data_set_is_named_from_the_options(options, expected):
    assert dataset_of(options) == expected


def test_only_valid_names_of_hub_data_sets_are_linked():
    for options, expected in (({'dataset': 'hfds/ann/bees'}, 'ann/bees'), ({'dataset': 'hfds/../bees'}, None),
                              ({'dataset': 'hfds/a--b'}, None), ({'data_dir': 'ann/bees'}, None), ({}, None),
                              ({'dataset': 'demo'}, None), ({'hub_dataset': 'ann/bees'}, 'ann/bees')):
        assert hub_dataset_of(options) == expected


def test_the_card_states_classes_images_and_the_choice_of_the_epoch(ema_run):
    """From a run with 12 images in each split, ranked by top-1 on `val`."""
    saved = read_model(str(ema_run))
    text = card_of(saved).content
    assert '0. `ant`\n1. `bee`\n2. `cat`\n' in text
    assert '- **Images:** 12 for training, 12 for validation\n' in text
    assert 'chosen by its top1 on the split validation' in text
    assert 'the accuracy was measured. Expect a lower accuracy' in text
    last = card_of(read_model(str(ema_run), which='last')).content
    assert 'chosen by' not in last and 'was measured only on the data above' in last


def test_weights_that_were_not_measured_have_this_limit(make_saved):
    assert '- Nobody has measured these weights.' in card_of(make_saved(metrics={})).content


def test_the_first_hundred_classes_are_shown(make_saved):
    text = card_of(make_saved(num_classes=120, class_names=[f'class {i}' for i in range(120)])).content
    assert '99. `class 99`\n\nAnd 20 more: see `label_names`' in text
    assert '`class 100`' not in text
    text = card_of(make_saved(class_names=['n12620546', 'a `b`', '<b>|\n# {{ c }}'])).content
    assert '0. `n12620546`: hip, rose hip, rosehip\n1. `` a `b` ``\n2. `<b>| # {{ c }}`\n' in text


def test_several_labels_per_image_have_their_code_and_metrics(make_saved):
    saved = make_saved()
    saved = dataclasses.replace(saved, options={**saved.options, 'task': 'multilabel'},
                                metrics=dict(map=48.8, micro_f1=58.06, loss=0.7))
    card = card_of(saved)
    assert 'model(input).sigmoid().topk(3)' in card.text
    assert [(result.metric_type, result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ('map', 'Mean average precision (%)', 48.8), ('f1', 'F1 over labels and images (%)', 58.06)]


def test_the_tag_names_method_and_data_set(make_saved):
    assert tag_of(make_saved(options=dict(model='test_resnet', dataset='torch/cifar10'))) == 'plain_cifar10'


@pytest.mark.parametrize('architecture, options, expected', [
    ('test_resnet', {'pretrained': True}, 'timm/test_resnet.r160_in1k'),
    ('resnet50.tv_in1k', {'pretrained': True}, 'timm/resnet50.tv_in1k'),
    ('hf_hub:ann/net@v2', {'pretrained': True}, 'ann/net'),
    ('local-dir:/x', {'pretrained': True}, None),
    ('test_resnet', {'pretrained': True, 'initial_checkpoint': 'x.pth'}, None),
    ('test_resnet', {'pretrained': False}, None),
    ('test_resnet', {}, None),
])
def test_the_base_model_is_that_of_the_options(saved, architecture, options, expected):
    of_options = base_of(dataclasses.replace(saved, architecture=architecture, options=options))
    assert of_options.get('name') == expected


def test_a_staged_folder_contains_no_path_of_this_machine(staged, tmp_path):
    shutil.copytree(staged, tmp_path / 'moved')
    for name in ('config.json', 'README.md', 'train_hparams.yaml'):
        assert str(staged) not in (tmp_path / 'moved' / name).read_text()


@pytest.mark.parametrize('model, expected', [
    ('hf_hub:someone/theirs', 'someone/theirs'),
    ('local-dir:mine', None),
    ('agmax_resnet50.cutmix_aa_in1k', None),
    ('resnet50.a3_in1k', 'timm/resnet50.a3_in1k'),
])
def test_the_base_model_is_the_given_one_and_not_that_of_timm(saved, model, expected):
    """The saved model names only timm's architecture."""
    options = dict(model=model, pretrained=True)
    saved = dataclasses.replace(saved, architecture='resnet50', options=options)
    assert base_of(saved).get('name') == expected


@pytest.mark.parametrize('method, shown', [
    ({}, set()),
    ({'agmax': True}, {'agmax_weight'}),
    ({'agmax_teacher': 'memory'}, {'agmax_teacher', 'agmax_teacher_weight'}),
])
def test_the_options_of_a_method_are_listed_for_its_runs(method, shown):
    options = {'agmax': False, 'agmax_weight': 1.0, 'agmax_teacher': 'none', 'agmax_teacher_weight': 0.5, **method}
    assert _hyperparameters(options, {**options, 'lr': 0.1}).keys() == {'lr', *shown}


@pytest.mark.parametrize('words, listed, left_out', [
    ('', {'scale', 'color_jitter'}, {'model_ema_decay'}),
    ('--model-ema', {'model_ema_decay', 'scale', 'color_jitter'}, set()),
    ('--no-aug', set(), {'scale', 'color_jitter'}),
    ('--aa rand-m9', {'aa', 'scale'}, {'color_jitter'}),
    ('--train-crop-mode pad', {'color_jitter'}, {'scale'}),
    ('--agmax', {'agmax_divergence_weight', 'agmax_divergence_reduction'}, {'agmax_teacher_weight'}),
    ('--agmax --agmax-loss kl', {'agmax_loss'}, {'agmax_divergence_weight', 'agmax_divergence_reduction'}),
    ('--agmax --agmax-weight 0 --agmax-divergence-weight 0', {'agmax_weight', 'agmax_divergence_weight'},
     {'smoothing'}),
    ('--smoothing 0 --color-jitter 0', {'smoothing', 'color_jitter'}, {'mixup'}),
    ('--opt sgd --weight-decay 0 --agmax-teacher memory --agmax-teacher-ramp 0',
     {'agmax_teacher_ramp', 'weight_decay'}, {'smoothing'}),
    ('--aa=', {'scale', 'color_jitter'}, {'aa'}),
])
def test_options_without_effect_are_not_listed(words, listed, left_out):
    options = values(parse_train_args(['DIR', *words.split()]))
    shown = _hyperparameters(options, recipe(options)).keys()
    assert listed <= shown and not left_out & shown


def test_a_real_checkpoint_has_a_table_without_options_that_have_no_effect(ema_run):
    options = read_model(str(ema_run)).options
    shown = _hyperparameters(options, recipe(options)).keys()
    without_ema = {**options, 'model_ema': False}
    assert shown - _hyperparameters(without_ema, recipe(without_ema)).keys() == {'model_ema', 'model_ema_decay'}
    assert {'model', 'epochs', 'lr', 'model_ema_decay'} <= shown


def test_the_command_of_a_run_has_its_number_of_processes(saved):
    for world_size, script in ((1, 'python train.py'), (4, 'torchrun --nproc-per-node 4 train.py')):
        options = {**saved.options, 'world_size': world_size}
        text = card_of(dataclasses.replace(saved, options=options), recipe=recipe(options)).content
        assert f'\n{script} DIR -c train_hparams.yaml\n' in text
