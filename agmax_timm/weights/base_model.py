"""The weights that a run starts from: their name on the Hub and their licence."""
import os
from contextlib import suppress
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from timm.models import get_pretrained_cfg, parse_model_name

from ..base.errors import CheckpointError
from ..base.hub_connection import single_attempt
from ..base.licences import license_in_folder, license_name
from ..options.model import TrainModel
from .checkpoint import metadata_in, options_in, read_checkpoint
from .saved_model import SavedModel

# 'name' of a repository on the Hub and 'license', each None if unknown. Empty if training starts without weights.
Base = dict[str, str | None]

# Entries of timm's configuration that say where weights are.
LOCATIONS = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename')


def find_base(options: TrainModel, model: Any) -> Base:
    """Return the weights that a run of train.py starts from. Reads the model card of a repository or folder, if any.

    Args:
        model: Model as timm created it. Its pretrained_cfg describes the weights that it loaded.
    """
    overlay = options.pretrained_cfg_overlay
    path: str | None = options.resume or options.initial_checkpoint
    if not path and options.pretrained:
        path = options.pretrained_path or overlay.get('file')
    if path:
        return base_of_file(path)
    if not options.pretrained:
        return {}
    config = model.pretrained_cfg
    source, name = parse_model_name(options.model)
    if source is None and not overlay.keys().isdisjoint(LOCATIONS):  # other weights than those whose licence timm knows
        config = {**config, 'license': overlay.get('license')}
    license = license_name(config.get('license'))
    if source == 'hf-hub':
        repo_id, _, revision = name.partition('@')
        return {'name': repo_id, 'license': _license_in_repository(repo_id, revision or None) or license}
    if source == 'local-dir':
        return {'name': None, 'license': license_in_folder(name) or license}
    return {'name': config.get('hf_hub_id'), 'license': license}


def base_of(saved: SavedModel) -> Base:
    """Return the weights that a trained model started from, according to its metadata, otherwise to its options."""
    return saved.base if saved.base is not None else _base_of_options(saved.options, saved.architecture)


def license_of(saved: SavedModel) -> str | None:
    """Return the licence of a model: the value of --license, otherwise the licence of its base. None if unknown."""
    return license_name(saved.options.get('license')) or base_of(saved).get('license')


def base_of_file(path: str) -> Base:
    """Return the base and the licence of a checkpoint or weights file that a run starts from."""
    with suppress(CheckpointError):  # loading the file reports it
        checkpoint = read_checkpoint(path, mmap=True)
        options, metadata = options_in(checkpoint), metadata_in(checkpoint)
        base = metadata['base'] if 'base' in metadata else _base_of_options(options)
        return {'name': base.get('name'), 'license': license_name(options.get('license')) or base.get('license')}
    return {'name': None, 'license': None}


def _license_in_repository(repo_id: str, revision: str | None) -> str | None:
    with suppress(HTTPError, OSError, ValueError), single_attempt(''):
        return license_in_folder(os.path.dirname(hf_hub_download(repo_id, 'README.md', revision=revision)))
    return None


def _base_of_options(options: dict[str, Any], architecture: str = '') -> Base:
    """The base by the options of a run whose checkpoint does not record it. That of a file or folder is unknown."""
    if not options.get('pretrained') or any(options.get(name) for name in ('pretrained_path', 'initial_checkpoint')):
        return {}
    source, _, name = (options.get('model') or architecture).rpartition(':')
    if source:
        return {'name': name.split('@')[0] if source in ('hf_hub', 'hf-hub') else None, 'license': None}
    config = get_pretrained_cfg(name)
    if config is None:
        return {}
    return {'name': config.hf_hub_id, 'license': license_name(config.license)}
