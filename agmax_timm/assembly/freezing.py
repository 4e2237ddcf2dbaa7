"""Parts of the model that are not trained, for fine-tuning: --freeze and --linear-probe."""
import fnmatch
import logging
from typing import Any

import torch.nn as nn

from ..base.distributed import is_primary
from ..base.errors import OptionError
from ..base.text import listed, nearest
from ..options.model import Model, TrainModel

_logger = logging.getLogger(__name__)


def freeze(options: TrainModel, model: nn.Module) -> None:
    """Freeze the parts of --freeze, or everything but the head with --linear-probe. Does nothing without these flags.

    timm.utils.freeze replaces batch norm by a layer whose state dict lacks `num_batches_tracked`. Here layers stay, so
    checkpoints have all tensors: keep_statistics() holds the statistics of frozen batch norm.

    Raises:
        OptionError: A pattern matches no part, nothing is left to train, or the model has no head.
    """
    if not (options.freeze or options.linear_probe):
        return
    for part in _parts(options, model):
        _set_frozen(part, True)
    for head in _heads(options, model) if options.linear_probe else ():
        _set_frozen(head, False)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise OptionError(f"--freeze {' '.join(map(repr, options.freeze))} leaves nothing of --model '{options.model}' "
                          'to train: leave out its head')
    if is_primary():
        count = sum(parameter.numel() for parameter in model.parameters())
        _logger.info(f'Frozen: {count - trained} of the {count} weights of the model.')
        if not (options.pretrained or options.initial_checkpoint or options.resume):
            _logger.warning(f"{'--linear-probe' if options.linear_probe else '--freeze'} keeps the random initial "
                            'weights: start from trained ones, with --pretrained or --initial-checkpoint')


def _set_frozen(part: Any, frozen: bool) -> None:
    part.requires_grad_(not frozen)
    for layer in part.modules() if isinstance(part, nn.Module) else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            vars(layer)['keeps_statistics'] = frozen  # read by frozen_batch_norm()


def frozen_batch_norm(module: nn.Module) -> list[nn.Module]:
    """Return the batch norm layers whose statistics stay as they are."""
    return [layer for layer in module.modules() if getattr(layer, 'keeps_statistics', False)]


def keep_statistics(module: nn.Module) -> None:
    """Put the frozen batch norm of a module into evaluation mode. Call it after module.train()."""
    for layer in frozen_batch_norm(module):
        layer.eval()


def _parts(options: TrainModel, model: nn.Module) -> list[Any]:
    """Return the modules and parameters whose names match --freeze. With --linear-probe, return the model."""
    if options.linear_probe:
        return [model]
    named: dict[str, Any] = {**dict(model.named_modules()), **dict(model.named_parameters())}
    del named['']  # the model itself
    parts = []
    for pattern in options.freeze:
        found = fnmatch.filter(named, pattern)
        if not found:
            parts_of_model = listed([name for name, _ in model.named_children()])
            raise OptionError(f"--freeze '{pattern}' matches no part of --model '{options.model}' ({parts_of_model})"
                              f'{nearest(pattern, named)}')
        parts += [named[name] for name in found]
    return parts


def _heads(options: Model, model: Any) -> list[Any]:
    found = model.get_classifier() if hasattr(model, 'get_classifier') else None
    heads = [*found] if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
    if not all(isinstance(head, nn.Module) and [*head.parameters()] for head in heads):
        raise OptionError(f"--linear-probe trains the head alone, and --model '{options.model}' has none: use --freeze")
    return heads
