"""Write a model into a folder in the layout of timm's models on the Hub, and check the folder by loading it."""
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import is_model
from timm.models._hub import save_config_for_hf

from ..base.atomic_write import scratch_folder, write_text
from ..base.class_labels import index_names, known_names
from ..base.licences import check_license, license_name
from ..base.random_state import kept_random_state
from ..base.silence import silenced
from ..options.recipe import recipe
from .base_model import LOCATIONS, base_of, license_of
from .card import model_card, tag_of
from .card_text import with_license
from .fit import misfits
from .hub_error import HubError, as_hub_error, reason
from .measured import unrepeatable
from .notes import SEVERAL_LABELS, notes_of
from .released import PAPER_ID, PAPER_NAME, package_of
from .saved_model import SavedModel
from .synsets import describe

CONFIG, WEIGHTS, CARD, RECIPE, SUMMARY, CURVES = FILES = (
    'config.json', 'model.safetensors', 'README.md', 'train_hparams.yaml', 'summary.csv', 'curves.png')
PUBLISHED = (*FILES, 'model.onnx', 'model.onnx.data')  # the last two by export --onnx

# Entries of timm's configuration that describe the weights that training started from, first their location.
_LOCATIONS = (*LOCATIONS, 'source')
_OF_SOURCE = (*_LOCATIONS, 'label_offset', 'label_names', 'label_descriptions', 'license', 'description', 'origin_url',
              'paper_name', 'paper_ids', 'notes')

# Errors of a disk, which may be temporary. safetensors has an error of its own for a full disk.
DISK_ERRORS = (OSError, SafetensorError)

_logger = getLogger(__name__)


def stage(
        saved: SavedModel,
        folder: str | Path,
        license: str | None = None,
        check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a model into a folder in timm's layout. The files replace those of the folder after the checks.

    The files are `FILES`: config.json, model.safetensors and README.md; train_hparams.yaml if the options of the run
    are known; summary.csv and curves.png if the run has them.

    Args:
        license: Licence of the weights, in the form of --license. None is the licence of license_of.
        check: Further check of the staged folder, which may raise HubError. It may add files.

    Raises:
        OptionError: The Hub does not list the licence.
        HubError: The folder cannot be written, does not give the logits of the model, or fails the check. The folder
            is left unchanged.
    """
    check_license(license)
    folder = Path(folder).absolute()
    with as_hub_error(f"cannot stage '{folder}'", (OSError, ValueError, RuntimeError, SafetensorError)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(str(folder)) as temporary:
            staged = Path(temporary)
            _write(saved, staged, license)
            if not _compare(saved, staged).isfinite().all():
                raise HubError(f"the logits of '{saved.source or saved.architecture}' are not finite, nothing to "
                               'publish: use another checkpoint')
            check(staged)
            folder.mkdir(exist_ok=True)
            for name in PUBLISHED:
                if not (staged / name).exists():
                    (folder / name).unlink(missing_ok=True)
            for path in staged.iterdir():
                os.replace(path, folder / path.name)


def try_staging(saved: SavedModel, check: Callable[[Path], None] = lambda folder: None) -> None:
    """Stage a model into a temporary folder, so that a run with --push-to-hub fails before training.

    The random state is unchanged. A full temporary folder is only a warning: the run is published from another folder.

    Raises:
        HubError: The model cannot be staged, or the check fails.
    """
    staged = False
    try:
        with kept_random_state(), silenced(), tempfile.TemporaryDirectory() as folder:
            with as_hub_error('cannot stage this model', (OSError, ValueError, RuntimeError, SafetensorError)):
                _write(saved, Path(folder))
                _compare(saved, Path(folder))
            staged = True
            check(Path(folder))
    except (HubError, OSError) as error:
        cause = error.__cause__ if isinstance(error, HubError) else error
        if staged or not isinstance(cause, DISK_ERRORS):
            raise
        _logger.warning(f'It was not tested whether this model can be published: {reason(cause)}')


def change_license(folder: str | Path, license: str) -> None:
    """Replace the licence in config.json and README.md of a staged folder. It has the form of --license.

    Raises:
        HubError: The files cannot be read or written.
    """
    with as_hub_error(f"cannot state a licence in '{folder}'", (OSError, ValueError)):
        config = json.loads(Path(folder, CONFIG).read_text(encoding='utf-8'))
        config['pretrained_cfg']['license'] = license_name(license)
        texts = {CONFIG: json.dumps(config, indent=2)}
        if Path(folder, CARD).is_file():
            texts[CARD] = with_license(Path(folder, CARD).read_text(encoding='utf-8'), license_name(license))
        for name, text in texts.items():
            write_text(str(Path(folder, name)), text)


def loading_code(saved: SavedModel, folder: str) -> str:
    """Return the line of Python that loads a staged folder, with the import of a package that timm needs for it."""
    package = package_of(saved.architecture)
    imported = '' if package == 'timm' else f'import {package}; '
    return f"{imported}timm.create_model('local-dir:{folder}', pretrained=True)"


def load_folder(folder: str | Path) -> torch.nn.Module:
    """Load the model of a staged folder in eval mode, after a check of every file.

    Raises:
        HubError: A file is missing, damaged or a link; the configuration names weights elsewhere or a model that timm
            does not have; or the weights do not fit the model.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise HubError(f"'{folder}' holds no {name}, as a staged folder does: export it again")
    for name in PUBLISHED:
        if (folder / name).is_symlink():
            raise HubError(f"'{folder / name}' is a link: put the file itself there")
    _check_config(folder / CONFIG)
    with as_hub_error(f"'{folder / CONFIG}': timm cannot build its model", Exception):
        model = timm.create_model(f'local-dir:{folder}')
    _check_tensors(folder / WEIGHTS, model)
    with as_hub_error(f"'{folder}' does not load", Exception):
        return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def _write(saved: SavedModel, folder: Path, license: str | None = None) -> None:
    model: Any = saved.create_model()
    license = _choose_license(saved, license)
    notes = notes_of(saved.options, saved.in_chans)
    if saved.options.get('exif_orientation'):
        _logger.warning('--exif-orientation: config.json notes it for agmax_timm, but timm does not turn images: '
                        'README.md shows how to turn them')
    model.pretrained_cfg = {
        **{name: value for name, value in model.pretrained_cfg.items() if name not in _OF_SOURCE},
        'tag': tag_of(saved),
        'license': license,
        **({'notes': notes} if notes else {}),
        **({'paper_name': PAPER_NAME, 'paper_ids': PAPER_ID} if saved.options.get('agmax') else {}),
    }
    architecture = model.pretrained_cfg['architecture']
    _write_config(saved, model, folder / CONFIG)
    # Clones, because safetensors refuses tensors that share memory. The metadata marks the file as PyTorch's.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors gives access to the owner alone

    made_by = recipe(saved.options) if saved.options.get('model') else {}  # unknown otherwise
    if made_by:
        (folder / RECIPE).write_text(yaml.safe_dump(made_by, default_flow_style=None), encoding='utf-8')
    for name in () if unrepeatable(saved) else (SUMMARY, CURVES):
        source = Path(saved.run_dir or '', name)
        if saved.run_dir and source.is_file():
            shutil.copyfile(source, folder / name)
    embedding, features = _shapes(folder, saved.data_config['input_size'])
    card = model_card(
        saved, architecture, embedding, features, recipe=made_by, curves=(folder / CURVES).exists(), license=license)
    (folder / CARD).write_text(str(card), encoding='utf-8')


def _choose_license(saved: SavedModel, license: str | None) -> str | None:
    """Return the licence that was chosen, otherwise that of the base. Warn if there is none, or if they differ."""
    license, base = license_name(license) or license_of(saved), base_of(saved)
    if license is None:
        _logger.warning('No licence is stated: choose one with --license')
    elif base.get('license') not in (None, license):
        _logger.warning(f"{base['name'] or 'a model'!r}, from which training started, is under '{base['license']}', "
                        f"and these weights are staged under '{license}': check whether that is allowed")
    return license


def _write_config(saved: SavedModel, model: torch.nn.Module, path: Path) -> None:
    """Write config.json as timm does, so that transformers loads it too.

    transformers takes the number of classes from the top level, and fails if model_args repeats it. Without names, it
    gives a model of as many classes as ImageNet the names of ImageNet.
    """
    names = known_names(saved.class_names, saved.num_classes)
    labels = dict(label_names=names or index_names(saved.num_classes), label_descriptions=describe(names or []))
    if saved.options.get('task') == SEVERAL_LABELS:
        labels['problem_type'] = 'multi_label_classification'
    save_config_for_hf(model, str(path), model_config=labels, data_config=saved.data_config)
    config = json.loads(path.read_text(encoding='utf-8'))
    config['model_args'].pop('num_classes')
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')


@torch.inference_mode()
def _compare(saved: SavedModel, folder: Path) -> torch.Tensor:
    """Return the logits of a model for random input. Raises HubError unless its staged folder gives the same logits."""
    input = torch.randn(2, *saved.data_config['input_size'], generator=torch.Generator().manual_seed(0))
    expected, loaded = saved.create_model()(input), load_folder(folder)(input)
    if not torch.allclose(expected, loaded, rtol=0, atol=0, equal_nan=True):
        raise HubError(f"the staged folder does not give the logits of '{saved.source or saved.architecture}': they "
                       f'differ by up to {(expected - loaded).abs().max():g}')
    return expected


@torch.inference_mode()
def _shapes(folder: Path, input_size: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Return the shapes of the embedding and of the feature maps of an image; no maps if the model gives none."""
    input = torch.zeros(1, *input_size)
    with silenced():  # these models are only created for their shapes
        embedding = timm.create_model(f'local-dir:{folder}', num_classes=0).eval()(input)
    try:
        with silenced():
            features = timm.create_model(f'local-dir:{folder}', features_only=True).eval()(input)
    except Exception as error:  # architectures without feature maps raise various errors
        _logger.info(f'The card shows no feature maps: {reason(error)}')
        features = []
    return list(embedding.shape), [list(feature.shape) for feature in features]


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"'{path}' is not JSON ({reason(error)}): export the folder again") from None
    config = config if isinstance(config, dict) else {}
    pretrained_cfg, model_args = config.get('pretrained_cfg'), config.get('model_args', {})
    if not isinstance(pretrained_cfg, dict) or not isinstance(model_args, dict):
        raise HubError(f"'{path}' has no pretrained_cfg as timm writes it: export the folder again")
    architecture = config.get('architecture')
    if not isinstance(architecture, str) or not is_model(architecture):
        raise HubError(f"'{path}': timm has no architecture {architecture!r}: update timm, or export the folder again")
    for name in _LOCATIONS:
        if pretrained_cfg.get(name):
            raise HubError(f"'{path}': '{name}' {pretrained_cfg[name]!r} points to weights elsewhere, and the "
                           'published folder contains its own: remove it')
    for name, value in model_args.items():
        if isinstance(value, str) and re.search(r'[/\\]|\.\.', value):
            raise HubError(f"'{path}': model_args '{name}' {value!r} is a path: remove it")


def _check_tensors(path: Path, model: torch.nn.Module) -> None:
    """Raise HubError unless a safetensors file has the tensors of the model by name and shape."""
    unsound = f"'{path}' is not sound, so export the folder again"
    with as_hub_error(unsound, Exception), safe_open(path, framework='pt') as f:
        names = f.keys()
        found = {name: torch.empty(f.get_slice(name).get_shape(), device='meta') for name in names}
    if misfits(found, model):
        raise HubError(f"'{path}' does not fit {CONFIG}: {misfits(found, model)}: export the folder again")
