"""The model card of a trained classifier: what the Hub reads of it, and what people do. Only what is known is said."""
import os
import re
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from ..base.class_labels import describe, known_names
from ..base.licences import license_fields
from ..options.recipe import portable
from ..options.settings import validate_command
from .base_model import Base, base_of
from .checkpoint import SavedModel
from .measured import describe_input, measured, unrepeatable

# What timm calls the folder of a card; see published_card.
_HERE = "'local-dir:.'"
PAPER_NAME = 'Improving Model Generalization by Agreement of Learned Representations from Data Augmentation'
PAPER_ID = 'arXiv:2110.10536'

_DEMO = ('fashion_mnist', 'a subset of Fashion-MNIST')
_MOST_CLASSES = 100
# Sections stand between marks, so that publishing again replaces them, and nothing else.
_BEGIN, _END = '<!-- agmax_timm: %s -->', '<!-- agmax_timm: end of %s -->'
OUR_TAGS = ('image-classification', 'timm', 'agmax')
# Names of metrics in the card's table, and their types on the Hub.
_METRICS = {
    'top1': ('Top-1 accuracy (%)', 'accuracy'),
    'top5': ('Top-5 accuracy (%)', 'accuracy'),
    'map': ('Mean average precision (%)', 'map'),
    'micro_f1': ('F1 over labels and images (%)', 'f1'),
}
_LICENSE_ROW = '- **Licence:**'
_HYPERPARAMETERS = (
    'model', 'pretrained', 'epochs', 'batch_size', 'world_size', 'grad_accum_steps', 'opt', 'lr', 'momentum',
    'weight_decay', 'sched', 'warmup_epochs', 'layer_decay', 'clip_grad', 'agmax_loss', 'agmax_weight',
    'agmax_divergence_weight', 'agmax_units', 'agmax_init_std', 'smoothing', 'bce_loss', 'mixup', 'cutmix',
    'cutmix_minmax', 'aa', 'cutout', 'lighting', 'color_jitter', 'reprob', 'train_crop_mode', 'scale', 'drop',
    'drop_path', 'model_ema', 'model_ema_decay', 'amp', 'seed')

_AGMAX_CITATION = f"""@inproceedings{{atienza2022agmax,
  author    = {{Atienza, Rowel}},
  title     = {{{PAPER_NAME}}},
  booktitle = {{Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)}},
  year      = {{2022}},
  eprint    = {{{PAPER_ID.removeprefix('arXiv:')}}},
  archivePrefix = {{arXiv}}
}}"""
_TIMM_CITATION = """@misc{rw2019timm,
  author    = {Ross Wightman},
  title     = {PyTorch Image Models},
  year      = {2019},
  publisher = {GitHub},
  journal   = {GitHub repository},
  doi       = {10.5281/zenodo.4414861},
  howpublished = {\\url{https://github.com/huggingface/pytorch-image-models}}
}"""


def model_card(
        saved: SavedModel,
        architecture: str,
        embedding_shape: Sequence[int],
        feature_shapes: Sequence[Sequence[int]] = (),
        recipe: dict[str, Any] | None = None,
        curves: bool = False,
        license: str | None = None,
) -> ModelCard:
    """The card of a staged folder.

    Args:
        saved: What was trained.
        architecture: timm's name of the model, without source and tag.
        embedding_shape: Shape of one image's embedding [1, C].
        feature_shapes: Shapes of its feature maps [1, C, H, W], none for a model that has no such.
        recipe: Options that make the run, as in train_hparams.yaml, if known.
        curves: Whether the folder holds curves.png.
        license: Name of the licence, None to state none.
    """
    metadata = _metadata(saved, f'{architecture}.{tag_of(saved)}', license)
    sections = {
        'about': _about(saved, architecture, license),
        'classes': _classes(saved),
        'usage': _usage(saved, embedding_shape, feature_shapes),
        'training': _training(saved, recipe),
        'results': _results(saved, curves),
        'limits': _limits(saved),
        'citation': _citations(),
    }
    body = join_sections('', {name: text for name, text in sections.items() if text})
    return ModelCard(f'---\n{metadata.to_yaml()}\n---\n\n{body}')


def published_card(card: str, repo_id: str, revision: str | None = None) -> str:
    """The card of a staged folder with the name of a repository in place of the folder's, for timm and transformers.

    Args:
        revision: Branch, None for the default one.
    """
    for_timm = f"'hf_hub:{repo_id}@{revision}'" if revision else f"'hf_hub:{repo_id}'"
    for_transformers = f"'{repo_id}', revision='{revision}'" if revision else f"'{repo_id}'"
    return re.sub(r"(pipeline\('image-classification', |from_pretrained\()'\.'", rf'\1{for_transformers}',
                  card.replace(_HERE, for_timm))


def tag_of(saved: SavedModel) -> str:
    """timm's tag of the weights, method and data set: agmax_imagenet, without the data set where it is not known."""
    method = 'agmax' if saved.options.get('agmax') else 'plain' if saved.options.get('model') else 'agmax_timm'
    dataset = dataset_of(saved.options)
    return '_'.join([method, re.sub(r'\W+', '_', dataset[0].split('/')[-1])] if dataset else [method])


def hub_dataset_of(options: dict[str, Any]) -> str | None:
    """Identifier on the Hub of the data a run saw: by --hub-dataset, or of hfds/ and hfids/ that are no folders."""
    if options.get('hub_dataset'):
        return options['hub_dataset']
    kind, _, name = (options.get('dataset') or '').partition('/')
    return name if kind in ('hfds', 'hfids') and is_repo_id(name) and not os.path.exists(name) else None


def dataset_of(options: dict[str, Any]) -> tuple[str, str] | None:
    """Identifier and name of the data a run saw: the Hub's for its data sets, otherwise the folder's own name."""
    name = options.get('dataset') or ''
    identifier = hub_dataset_of(options)
    if identifier:
        return identifier, identifier
    if name == 'demo':
        return _DEMO
    if not name or '/' not in name:
        name = os.path.abspath(options.get('data_dir') or options.get('data') or '/')
    name = os.path.basename(name)  # of a folder, whose path is nobody's business
    return (re.sub(r'[^\w.-]+', '-', name).lower(), name) if name else None


def is_repo_id(name: str) -> bool:
    """Whether the Hub takes this as the name of a repository, by the rule of its client."""
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True


def _metadata(saved: SavedModel, title: str, license: str | None) -> ModelCardData:
    dataset, hub_dataset = dataset_of(saved.options), hub_dataset_of(saved.options)
    results = [
        EvalResult(
            task_type='image-classification', task_name='Image classification',
            dataset_type=dataset[0], dataset_name=dataset[1],
            dataset_split=portable(saved.options.get('val_split')) or None,
            metric_type=_METRICS[name][1], metric_name=_METRICS[name][0], metric_value=value)
        for name, value in _accuracies(saved).items()] if dataset else []
    return ModelCardData(
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *(['agmax'] if saved.options.get('agmax') else [])],
        **license_fields(license),
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=base_of(saved).get('name'),
        model_name=title if results else None,
        eval_results=results or None,
    )


def _accuracies(saved: SavedModel) -> dict[str, float]:
    """Measured metrics in percent; top-5 says something of more than five classes alone."""
    values = measured(saved)
    return {name: round(values[name], 4) for name in _METRICS
            if name in values and (name != 'top5' or saved.num_classes > 5)}


def _several_labels(saved: SavedModel) -> bool:
    """Whether an image has any number of labels instead of one class."""
    return saved.options.get('task') == 'multilabel'


def _about(saved: SavedModel, architecture: str, license: str | None) -> str:
    options, dataset = saved.options, dataset_of(saved.options)
    channels, height, width = saved.data_config['input_size']
    sentences = [f'An image classifier: {architecture} of '
                 '[timm](https://github.com/huggingface/pytorch-image-models)'
                 + (f', trained on {dataset[1]}.' if dataset else '.')]
    if options.get('agmax'):
        sentences.append(
            f'It was trained with AgMax ([{PAPER_NAME}](https://arxiv.org/abs/{PAPER_ID.removeprefix("arXiv:")})): '
            'two augmented views of every image, and a regulariser that rewards predictions that agree. '
            'What is here is the plain classifier; timm alone loads it.')
    rows = [f'- **Input:** {channels} x {height} x {width}', f'- **Classes:** {saved.num_classes}']
    if saved.images:
        titles = {'train': 'to train on', 'validation': 'to validate on'}
        counts = ', '.join(f'{saved.images[split]:,} {titles[split]}' for split in titles if split in saved.images)
        rows.append(f'- **Images:** {counts}')
    parameters = sum(value.numel() for name, value in saved.state_dict.items()
                     if value.is_floating_point() and 'running_' not in name)
    which = f'; {saved.weights}' if saved.weights else ''
    rows.append(f'- **Weights:** {parameters / 1e6:.2f} million, safetensors{which}')
    base = base_of(saved)
    if base.get('name'):
        rows.append(f"- **Fine-tuned from:** {base['name']}")
    rows.append(license_row(license, base))
    return f'# {architecture}.{tag_of(saved)}\n\n' + ' '.join(sentences) + '\n\n' + '\n'.join(rows)


def _classes(saved: SavedModel) -> str:
    """The names by index, of the first classes where there are many."""
    names = known_names(saved.class_names, saved.num_classes)
    if not names:
        return ''
    words = describe(names)
    shown = [f'{index}. {_inline(name)}' + (f': {words[name]}' if words.get(name, name) != name else '')
             for index, name in enumerate(names[:_MOST_CLASSES])]
    more = [f'\nAnd {len(names) - _MOST_CLASSES} more: see `label_names` in [config.json](config.json).']
    return '\n'.join(['## Classes', '', *shown, *(more if len(names) > _MOST_CLASSES else [])])


def license_row(license: str | None, base: Base) -> str:
    """The line of a card on its licence."""
    if license is None:
        return f'{_LICENSE_ROW} none is stated: whoever publishes this model has to choose one'
    of_base = ', that of the weights from which training started' if license == base.get('license') else ''
    return f'{_LICENSE_ROW} {license}{of_base}'


def with_license(card: str, license: str) -> str:
    """A card with another licence in its metadata and in its text."""
    metadata, body = split_card(card)
    for name in ('license_name', 'license_link'):
        metadata.pop(name, None)
    body = re.sub(rf'^{re.escape(_LICENSE_ROW)}.*$', license_row(license, {}), body, flags=re.M)
    return join_card({**metadata, **license_fields(license)}, body)


def join_sections(rest: str, sections: dict[str, str]) -> str:
    """Text with sections at their marks; one without a mark follows the section before it. Other marks are removed."""
    rest = re.sub(r'\n*' + _BEGIN % r'(\w+)', lambda match: match[0] if match[1] in sections else '', rest)
    before = ''
    for name, text in sections.items():
        mark, marked = _BEGIN % name, f'{_BEGIN % name}\n{text}\n{_END % name}'
        if mark in rest:
            rest = rest.replace(mark, marked, 1)
        elif before:
            rest = rest.replace(before, f'{before}\n\n{marked}', 1)
        else:
            rest = f'{rest.rstrip()}\n\n{marked}\n'.lstrip('\n')
        before = _END % name
    return rest


def split_sections(body: str) -> tuple[dict[str, str], str]:
    """Our sections in the text of a card, and the text around them with a mark in the place of each.

    Raises:
        ValueError: a mark has no counterpart.
    """
    sections = {}

    def cut(match: re.Match) -> str:
        sections[match[1]] = match[2].strip('\n')
        return _BEGIN % match[1]
    rest = re.sub(_BEGIN % r'(\w+)' + r'\n([\s\S]*?)\n?' + _END % r'\1', cut, body)
    if len(re.findall(_BEGIN % r'\w+', rest)) != len(sections) or re.search(_END % r'\w+', rest):
        raise ValueError('its marks <!-- agmax_timm: ... --> are damaged')
    return sections, rest


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card and its text. Raises ValueError where the metadata are not a mapping in YAML."""
    match = REGEX_YAML_BLOCK.search(card)
    try:
        metadata = (yaml.safe_load(match[2]) if match else None) or {}
    except yaml.YAMLError:
        raise ValueError('its metadata are no YAML') from None
    if not isinstance(metadata, dict):
        raise ValueError('its metadata are not lines of "key: value"')
    return metadata, card[match.end():] if match else card


def join_card(metadata: dict[str, Any], body: str) -> str:
    return f'---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}'


def _usage(saved: SavedModel, embedding_shape: Sequence[int], feature_shapes: Sequence[Sequence[int]]) -> str:
    mode = _image_mode(saved)
    lines = ['import timm', 'import torch']
    if mode:
        lines.append('from PIL import Image')
    lines += ['', f"model = timm.create_model({_HERE}, pretrained=True).eval()"]
    if mode:
        lines += ['config = timm.data.resolve_model_data_config(model)',
                  'transform = timm.data.create_transform(**config, is_training=False)',
                  f"input = transform(Image.open('image.jpg').convert('{mode}')).unsqueeze(0)"]
    else:
        lines.append(f"input = torch.rand(1, {', '.join(map(str, saved.data_config['input_size']))})")
    probabilities = 'sigmoid()' if _several_labels(saved) else 'softmax(-1)'
    lines += ['', 'with torch.inference_mode():',
              f'    probabilities, classes = model(input).{probabilities}.topk({min(5, saved.num_classes)})']
    names = known_names(saved.class_names, saved.num_classes)
    if names:
        lines.append("names = [model.pretrained_cfg['label_names'][index] for index in classes[0]]")
        if describe(names):
            lines.append("names = [model.pretrained_cfg['label_descriptions'][name] for name in names]")
        lines.append('print(names, probabilities)')
    else:
        lines.append('print(classes, probabilities)')
    blocks = ['### Classification\n\n' + _python(lines), '### With transformers\n\n' + _transformers_usage(saved)]
    if feature_shapes:
        blocks.append('### Feature maps\n\n' + _python([
            f"backbone = timm.create_model({_HERE}, pretrained=True, features_only=True).eval()",
            'with torch.inference_mode():',
            '    maps = backbone(input)',
            *(f'# {list(shape)}' for shape in feature_shapes)]))
    blocks.append('### Embeddings\n\n' + _python([
        f"encoder = timm.create_model({_HERE}, pretrained=True, num_classes=0).eval()",
        'with torch.inference_mode():',
        f'    embedding = encoder(input)  # {list(embedding_shape)}']))
    return '## Usage\n\n' + '\n\n'.join(blocks)


def _image_mode(saved: SavedModel) -> str | None:
    """The PIL mode that images are converted to, None where it is not known."""
    return saved.options.get('input_img_mode') or {1: 'L', 3: 'RGB'}.get(saved.in_chans)


def _transformers_usage(saved: SavedModel) -> str:
    """Its pipeline turns every image into RGB: other models get the input of the snippet for timm."""
    if _image_mode(saved) == 'RGB':
        return _python([
            'from transformers import pipeline', '',
            "classifier = pipeline('image-classification', '.')",
            "print(classifier('image.jpg'))"])
    return _python([
        'from transformers import AutoModelForImageClassification', '',
        "model = AutoModelForImageClassification.from_pretrained('.')",
        'with torch.inference_mode():',
        '    logits = model(pixel_values=input).logits'])


def _training(saved: SavedModel, recipe: dict[str, Any] | None) -> str:
    if not recipe:
        return ''
    known = {**portable(saved.options), **recipe}
    rows = [f'| {name} | {_plain(known[name])} |' for name in _HYPERPARAMETERS
            if known.get(name) not in (None, False, '', 0, []) and (recipe.get('agmax') or 'agmax' not in name)]
    versions = ', '.join(f'{name} {version}' for name, version in saved.versions.items())
    return '\n'.join([
        '## Training', '',
        'With agmax_timm' + (f' ({versions})' if versions else '') + '; every option is in '
        '[train_hparams.yaml](train_hparams.yaml), from which the run can be made again:', '',
        '```bash', f"python train.py {'DIR ' if known.get('data_dir') else ''}-c train_hparams.yaml", '```', '',
        '| option | value |', '|---|---|', *rows])


def _results(saved: SavedModel, curves: bool) -> str:
    values = {_METRICS[name][0]: f'{value:.4f}' for name, value in _accuracies(saved).items()}
    if 'loss' in measured(saved):
        values['Loss'] = f"{saved.metrics['loss']:.4f}"
    lines = []
    if values:
        lines += [_measurement(saved), '',
                  f"| {' | '.join(values)} |", '|---' * len(values) + '|', f"| {' | '.join(values.values())} |"]
        if saved.options.get('model'):
            lines += ['', "agmax_timm's validate.py gives them again:", '',
                      '```bash', validate_command(saved.options, _HERE), '```']
    elif unrepeatable(saved) and not saved.metrics.keys().isdisjoint(_METRICS):
        lines.append(f'No number is given, as the model does not repeat it: {unrepeatable(saved)}.')
    chosen = _chosen_by(saved)
    if chosen:
        lines += [*([''] if lines else []), f'The epoch was chosen by {chosen}.']
    if curves:
        lines += [*([''] if lines else []), '![Loss, accuracy and learning rate by epoch](curves.png)']
    return '\n'.join(['## Results', '', *lines]) if lines else ''


def _measurement(saved: SavedModel) -> str:
    """What was measured: of which data, when, and of which input."""
    options = saved.options
    dataset, split = dataset_of(options), portable(options.get('val_split'))
    where = (f' on {dataset[1]}' if dataset else '') + (f', split {split}' if split else '')
    epoch = f" after epoch {saved.metrics['epoch']:.0f} (counted from 0)" if 'epoch' in saved.metrics else ''
    naflex = bool(options.get('naflex_loader'))
    other = ' The code above resizes and crops to one size: that was not measured.' if naflex else ''
    return f'Measured in validation{where}{epoch}, {describe_input(options, saved.data_config)}.{other}'


def _chosen_by(saved: SavedModel) -> str:
    """What chose the epoch, '' where nothing did or nobody knows."""
    split = saved.options.get('val_split')
    if not saved.chosen_by or split is None:
        return ''
    return f'its {saved.chosen_by} on the split {portable(split)}' if split else 'its loss in training'


def _limits(saved: SavedModel) -> str:
    lines = ['- It knows no other classes: an image of something else gets the probabilities of these.']
    if _accuracies(saved):
        lines.append('- It was measured on the data above alone. Its accuracy on other data, on damaged images or '
                     'under attack is not known.')
        if saved.options.get('val_split') and _chosen_by(saved):
            lines.append('- The images that it was measured on also chose the epoch: expect less on new ones.')
    elif unrepeatable(saved):
        lines.append('- Its accuracy is not known.')
    else:
        lines.append('- Nobody has measured these weights.')
    return '\n'.join(['## Limits', '', *lines])


def _citations() -> str:
    return '## Citation\n\n' + '\n\n'.join(f'```bibtex\n{entry}\n```' for entry in (_AGMAX_CITATION, _TIMM_CITATION))


def _python(lines: list[str]) -> str:
    return '\n'.join(['```python', *lines, '```'])


def _inline(text: str) -> str:
    """Text as code of Markdown, whatever is in it: names of folders are anything."""
    line = ' '.join(text.split())
    fence = '`' * (1 + max(map(len, re.findall('`+', line)), default=0))
    return f'{fence} {line} {fence}' if '`' in line else f'`{line}`'


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).replace('\n...', '').strip().replace('|', r'\|')
