"""Comparison of a staged folder with its run on validation images, each with its own preprocessing."""
import itertools
from dataclasses import replace
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.data import resolve_model_data_config

from ..assembly import datasets, loaders
from ..assembly.model import Precision
from ..base.errors import DataError
from ..options.parsers import TrainOptions, saved_train_options
from ..weights.card import hub_dataset_of
from ..weights.hub_error import HubError, as_hub_error, reason
from ..weights.notes import noted_options
from ..weights.resume import differ
from ..weights.saved_model import SavedModel
from ..weights.staging import load_folder

_BATCHES, _BATCH_SIZE = 2, 8

_logger = getLogger(__name__)


def compare_on_data(saved: SavedModel, folder: Path, in_run: bool = False) -> None:
    """Check that a staged folder and its run give equal logits for the first validation images of the run.

    The model, the data configuration and the image mode of the folder are those that plain timm reads from config.json.
    If the data cannot be read, a warning gives the reason.

    Args:
        in_run: Whether the caller is the run itself, so that a data set of the Hub is already downloaded.

    Raises:
        HubError: The logits differ, or the model does not accept the images that config.json describes.
    """
    try:
        options = _options(saved, in_run)
        expected, own = _evaluate(saved.create_model(), saved.data_config, options)
    except Exception as error:  # data sets raise many types
        # Weights without a run have no data, so no warning is needed.
        _logger.log(WARNING if saved.options.get('model') else INFO, 'The preprocessing of the staged folder is not '
                    f'checked, because there is no validation data: {reason(error)}')
        return
    with as_hub_error('the staged folder does not accept the validation images of the run', Exception):
        model: Any = load_folder(folder)
        noted = noted_options(model.pretrained_cfg)
        staged_options = replace(options, input_img_mode=noted.get('input_img_mode'),
                                 exif_orientation=noted.get('exif_orientation', False))
        found, published = _evaluate(model, resolve_model_data_config(model), staged_options)
    if not torch.equal(expected, found):
        others = ''.join(f'; {name} is {published.get(name)}, in the run {value}' for name, value in own.items()
                         if differ(value, published.get(name)))
        raise HubError(
            f"the staged folder does not give the logits of '{saved.source}' on {len(expected)} validation images: "
            f'they differ by up to {(expected - found).abs().max():.3g}{others}')
    _logger.info(f'The staged folder gives the logits of the run on {len(expected)} validation images')


def _options(saved: SavedModel, in_run: bool) -> TrainOptions:
    """Return the options of the run for reading its validation data here. Raise DataError if that is impossible."""
    class_map: Any = saved.class_map  # content of the file, which may be missing
    options = replace(
        saved_train_options(saved.options), class_map=class_map, workers=0, dataset_download=False)
    if not saved.options.get('model'):
        raise DataError('the options of the run are not known')
    if not options.val_split:
        raise DataError('the run had none')
    if not in_run and hub_dataset_of({**vars(options), 'hub_dataset': ''}):
        raise DataError(f"--dataset '{options.dataset}' is on the Hub")
    return options


@torch.inference_mode()
def _evaluate(
        model: nn.Module,
        data_config: dict[str, Any],
        options: TrainOptions,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the logits of the first validation images [N, K], float32 on the CPU, and their preprocessing."""
    dataset = datasets.open_validation(options, data_config)
    patch_size = loaders.patch_size(model) if options.naflex_loader else None
    loader = loaders.build_eval_loader(
        options, dataset, data_config, torch.device('cpu'), Precision(), _BATCH_SIZE, patch_size)
    logits = torch.cat([model(input) for input, _ in itertools.islice(loader, _BATCHES)])
    return logits, {**data_config, 'input_img_mode': datasets.image_mode(options, data_config)}
