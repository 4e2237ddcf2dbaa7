"""The facts of the model card of a trained classifier. card.md.jinja puts them into words."""
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from PIL.ImageMode import getmode

from ..base.class_labels import known_names
from ..base.image_modes import mode_of_channels
from ..base.licences import license_fields
from ..options.changed_options import changed_options, train_script, validate_command
from ..options.data_kinds import split_name
from ..options.declare import declared, has_effect
from ..options.option_file import as_yaml
from ..options.parsers import TrainOptions, saved_train_options
from ..options.recipe import portable
from ..options.without_effect import idle_options
from .base_model import base_of
from .card_text import license_row
from .measured import describe_input, measured, unrepeatable
from .notes import SEVERAL_LABELS
from .released import PAPER_ID, PAPER_NAME, package_of
from .saved_model import SavedModel
from .synsets import describe

# Name of the folder of a card in timm; see published_card.
_HERE = "'local-dir:.'"
_TEMPLATE = Path(__file__).with_name('card.md.jinja')

_DEMO = ('fashion_mnist', 'a subset of Fashion-MNIST')
OUR_TAGS = ('image-classification', 'timm', 'agmax')
# Names of metrics in the card's table, and their types on the Hub.
_METRICS = {
    'top1': ('Top-1 accuracy (%)', 'accuracy'),
    'top5': ('Top-5 accuracy (%)', 'accuracy'),
    'map': ('Mean average precision (%)', 'map'),
    'micro_f1': ('F1 over labels and images (%)', 'f1'),
}


def model_card(
        saved: SavedModel,
        architecture: str,
        embedding_shape: Sequence[int],
        feature_shapes: Sequence[Sequence[int]] = (),
        recipe: dict[str, Any] | None = None,
        curves: bool = False,
        license: str | None = None,
) -> ModelCard:
    """Return the card of a staged folder.

    Args:
        architecture: timm's name of the model, without source and tag.
        embedding_shape: Shape of the embedding of one image [1, C].
        feature_shapes: Shapes of its feature maps [1, C, H, W]; empty if the model gives none.
        recipe: Options that repeat the run, as in train_hparams.yaml, if known.
        curves: Whether the folder holds curves.png.
        license: Name of the licence, None to state none.
    """
    options, base, dataset, scores = saved.options, base_of(saved), dataset_of(saved.options), _scores(saved)
    title, mode = f'{architecture}.{tag_of(saved)}', mode_of_channels(saved.in_chans)
    names = known_names(saved.class_names, saved.num_classes) or []
    return ModelCard.from_template(
        _metadata(saved, title, license, scores),
        template_path=str(_TEMPLATE),
        saved=saved,
        options=options,
        title=title,
        architecture=architecture,
        package=package_of(architecture),
        dataset=dataset and dataset[1],
        base=base,
        license_row=license_row(license, base.get('license')),
        paper_name=PAPER_NAME,
        paper_number=PAPER_ID.removeprefix('arXiv:'),
        parameters=sum(value.numel() for name, value in saved.state_dict.items()
                       if value.is_floating_point() and 'running_' not in name),
        mode=options.get('input_img_mode') or (mode if len(getmode(mode).bands) == saved.in_chans else None),
        several_labels=options.get('task') == SEVERAL_LABELS,
        names=names,
        described=bool(describe(names)),
        classes=_class_lines(names),
        embedding_shape=embedding_shape,
        feature_shapes=feature_shapes,
        curves=curves,
        train_script=shlex.join(train_script(options, options.get('world_size') or 1)),
        recipe=_hyperparameters(options, recipe or {}),
        **_evaluation(saved, scores),
    )


def _evaluation(saved: SavedModel, scores: dict[str, float]) -> dict[str, Any]:
    """Return what the card says about the evaluation of the model, or why it has none."""
    options = saved.options
    results = {_METRICS[name][0]: f'{value:.4f}' for name, value in scores.items()}
    if 'loss' in measured(saved):
        results['Loss'] = f"{saved.metrics['loss']:.4f}"
    split = split_name(options, portable(options.get('val_split')))
    chosen_by = f'its {saved.chosen_by} on the split {split}' if split else 'its loss in training'
    return dict(
        scores=scores,
        results=results,
        split=split,
        measured_input=describe_input(options, saved.data_config) if results else '',
        command=validate_command(options, _HERE) if options.get('model') else '',
        unrepeatable=unrepeatable(saved) if not saved.metrics.keys().isdisjoint(_METRICS) else '',
        chosen_by=chosen_by if saved.chosen_by and split is not None else '',
    )


def published_card(card: str, repo_id: str, revision: str | None = None) -> str:
    """Replace the folder in the snippets of a card, for timm and transformers, by a repository on the Hub.

    Args:
        revision: Branch, None for the default one.
    """
    for_timm = f"'hf_hub:{repo_id}@{revision}'" if revision else f"'hf_hub:{repo_id}'"
    for_transformers = f"'{repo_id}', revision='{revision}'" if revision else f"'{repo_id}'"
    return re.sub(r"(pipeline\('image-classification', |from_pretrained\()'\.'", rf'\1{for_transformers}',
                  card.replace(_HERE, for_timm))


def tag_of(saved: SavedModel) -> str:
    """Return timm's tag of the weights: method and data set, such as agmax_imagenet; the method if no data is known."""
    method = 'agmax' if saved.options.get('agmax') else 'plain' if saved.options.get('model') else 'agmax_timm'
    if saved.options.get('agmax_teacher') == 'memory':
        method = 'memory'
    dataset = dataset_of(saved.options)
    return '_'.join([method, re.sub(r'\W+', '_', dataset[0].split('/')[-1])] if dataset else [method])


def hub_dataset_of(options: dict[str, Any]) -> str | None:
    """Return the name of the training data on the Hub: --hub-dataset, or that of hfds/ and hfids/."""
    if options.get('hub_dataset'):
        return options['hub_dataset']
    kind, _, name = (options.get('dataset') or '').partition('/')
    if kind in ('hfds', 'hfids') and not os.path.exists(name):
        with suppress(ValueError):
            validate_repo_id(name)
            return name
    return None


def dataset_of(options: dict[str, Any]) -> tuple[str, str] | None:
    """Return identifier and name of the training data: from the Hub, otherwise from the last name of its folder."""
    name = options.get('dataset') or ''
    identifier = hub_dataset_of(options)
    if identifier:
        return identifier, identifier
    if name == 'demo':
        return _DEMO
    if not name or '/' not in name:
        name = os.path.abspath(options.get('data_dir') or options.get('data') or '/')
    name = os.path.basename(name)  # no path of the machine
    return (re.sub(r'[^\w.-]+', '-', name).lower(), name) if name else None


def _metadata(saved: SavedModel, title: str, license: str | None, scores: dict[str, float]) -> ModelCardData:
    dataset, hub_dataset = dataset_of(saved.options), hub_dataset_of(saved.options)
    results = [
        EvalResult(
            task_type='image-classification', task_name='Image classification',
            dataset_type=dataset[0], dataset_name=dataset[1],
            dataset_split=split_name(saved.options, portable(saved.options.get('val_split'))) or None,
            metric_type=_METRICS[name][1], metric_name=_METRICS[name][0], metric_value=value)
        for name, value in scores.items()] if dataset else []
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


def _scores(saved: SavedModel) -> dict[str, float]:
    """Measured metrics in percent. Top-5 is informative only with more than five classes."""
    values = measured(saved)
    return {name: round(values[name], 4) for name in _METRICS
            if name in values and (name != 'top5' or saved.num_classes > 5)}


def _class_lines(names: Sequence[str]) -> list[str]:
    """Names of classes as Markdown, with the words for a synset."""
    words = describe(names)
    return [_inline(name) + (f': {words[name]}' if words.get(name, name) != name else '') for name in names]


def _hyperparameters(options: dict[str, Any], recipe: dict[str, Any]) -> dict[str, str]:
    """The options of the table, with their values as Markdown; empty without a recipe.

    An option that is off, such as --weight-decay 0, is only in it if its default is another value.
    """
    if not recipe:
        return {}
    known = {**portable(options), **recipe}
    idle, changed = _without_effect(known), changed_options(known)
    names = [name for name, option in declared(TrainOptions).items() if option.card and name not in idle]
    return {name: as_yaml(known[name]).replace('|', r'\|') for name in (*names, 'world_size')
            if known.get(name) not in (None, '', []) and (known[name] or name in changed) and _concerns(name, recipe)}


def _without_effect(saved: dict[str, Any]) -> set[str]:
    """Return the options without effect on a run; empty if train.py does not accept the values in the file."""
    try:
        options = saved_train_options(saved)
        lacking = {name for name, option in declared(TrainOptions).items()
                   if option.requires and not has_effect(options, option.requires)}
        return lacking.union(name for name, _ in idle_options(options))
    except Exception:  # the values may have any type
        return set()


def _concerns(name: str, recipe: dict[str, Any]) -> bool:
    """Whether an option concerns the method of a run."""
    if name.startswith('agmax_teacher'):
        return recipe.get('agmax_teacher') == 'memory'
    return bool(recipe.get('agmax')) or 'agmax' not in name


def _inline(text: str) -> str:
    """Return text as inline code of Markdown, also if it contains backquotes or line ends."""
    line = ' '.join(text.split())
    fence = '`' * (1 + max(map(len, re.findall('`+', line)), default=0))
    return f'{fence} {line} {fence}' if '`' in line else f'`{line}`'
