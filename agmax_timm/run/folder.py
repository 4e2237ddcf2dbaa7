"""The folder of a run: its name, what it records of the run, and going on in it."""
import argparse
import logging
import os
from datetime import datetime
from typing import Any, Dict, Optional

import torch.distributed as dist
import yaml
from timm import utils
from timm.models import safe_model_name

from ..durable import cut, replacing
from ..newest import newest_checkpoint
from . import reporting
from .config import OptionError

_logger = logging.getLogger('train')


def resolve_resume(args: argparse.Namespace) -> None:
    """Settle --resume auto: the newest checkpoint of --experiment that is whole, or a fresh run where there is none.

    Raises:
        OptionError: there are checkpoints, and all are damaged.
    """
    if args.resume != 'auto':
        return
    path, damaged = newest_checkpoint(os.path.join(_parent(args), args.experiment))
    if path is None and damaged:
        raise OptionError(f'--resume auto finds no checkpoint that is whole: {damaged[0][1]}: remove the folder to '
                          'start afresh, or give --resume FILE of another')
    if damaged:
        reasons = '; '.join(reason for _, reason in damaged)
        _logger.warning(f'{reasons}: going on from {path}')
    args.resume = path or ''


def check_same_start(args: argparse.Namespace, resume_epoch: Optional[int]) -> None:
    """Raise OptionError where ranks found different checkpoints, as on machines that do not share the folder.

    Args:
        resume_epoch: Epoch that this rank's checkpoint goes on with, None without one.
    """
    if not args.distributed:
        return
    epochs = [None] * args.world_size
    dist.all_gather_object(epochs, resume_epoch)
    others = [rank for rank, epoch in enumerate(epochs) if epoch != epochs[0]]
    if others:
        said = [f'goes on with epoch {epoch}' if epoch is not None else 'finds no checkpoint' for epoch in epochs]
        raise OptionError(f'--resume: rank 0 {said[0]}, rank {others[0]} {said[others[0]]}: give every machine '
                          f'the same files, --output {_parent(args)} on storage that all of them share')


def open_folder(args: argparse.Namespace, options: Dict[str, Any], img_size: int, before: Any = None) -> str:
    """Create or enter the run's folder, named as timm names it, with the options as args.yaml and the log in train.log.

    A run that goes on in its own folder goes on with the log and the summary of its checkpoint.

    Args:
        options: Options as given.
        img_size: Side of the input, for the name.
        before: What the checkpoint holds that the run was resumed from, None without one.
    """
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = args.experiment or f'{stamp}-{safe_model_name(args.model)}-{img_size}'
    folder = utils.get_outdir(_parent(args), name)
    log = os.path.join(folder, reporting.LOG)
    if before is not None and before.exact and goes_on(args, folder):
        cut(log, before.state.get('log', 0))
        if before.state['rows']:
            reporting.write_summary(summary_path(folder), before.state['rows'])
    reporting.log_to_file(log)
    with replacing(os.path.join(folder, 'args.yaml'), 'w') as f:
        yaml.safe_dump(options, f, default_flow_style=False)
    return folder


def check_folder(args: argparse.Namespace) -> None:
    """Raise OptionError where the folder holds another run than the one to go on with: nothing of it is replaced."""
    if not args.experiment:
        return
    folder = os.path.join(_parent(args), args.experiment)
    if goes_on(args, folder) or not os.path.isdir(folder):
        return
    if any(name.endswith('.pth.tar') or name == 'summary.csv' for name in os.listdir(folder)):
        raise OptionError(f'--experiment {args.experiment}: {folder} holds a run: add --resume auto to go on with it, '
                          'or give another name')


def share_path(args: argparse.Namespace, path: Optional[str]) -> Optional[str]:
    """The first rank's path, on all ranks."""
    paths = [path]
    if args.distributed:
        dist.broadcast_object_list(paths, 0)
    return paths[0]


def goes_on(args: argparse.Namespace, folder: Optional[str]) -> bool:
    """Whether the run was resumed from a checkpoint in its own folder."""
    return bool(args.resume and folder) and os.path.realpath(os.path.dirname(args.resume)) == os.path.realpath(folder)


def summary_path(folder: str) -> str:
    return os.path.join(folder, 'summary.csv')


def _parent(args: argparse.Namespace) -> str:
    return args.output or os.path.join('output', 'train')
