"""What changed between a checkpoint and the options and data that are to go on from it."""
import argparse
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ...base.command_line import flag_of
from ...base.errors import OptionError
from ...base.text import listed
from ...data.sources.classes import class_names, normalised, same_names
from ...options.kinds import KEEPING, LAUNCHER

# They decide what the tensors of a checkpoint are.
_FIXED = ('model', 'num_classes', 'in_chans', 'gp', 'model_kwargs', 'agmax', 'agmax_loss', 'agmax_units', 'task',
          'kd_model_name', 'kd_distill_type', 'split_bn')
_FIXED_WITH_OPTIMIZER = ('opt', 'layer_decay')
# Within an epoch, they decide which samples are left of it.
_FIXED_WITHIN_EPOCH = (
    'seed', 'dataset', 'train_split', 'train_num_samples', 'epoch_repeats', 'aug_repeats', 'grad_accum_steps',
    'use_multi_epochs_loader', 'train_img_sizes', 'train_batch_sizes', 'train_size_probs', 'train_size_schedule',
    'train_size_schedule_spread', 'train_size_random_mix', 'train_batches_per_epoch', 'naflex_loader',
    'naflex_train_seq_lens', 'naflex_patch_sizes', 'naflex_patch_size_probs')
_SCHEDULE = (
    'lr', 'lr_base', 'lr_base_size', 'lr_base_scale', 'epochs', 'sched', 'sched_on_updates', 'warmup_lr',
    'warmup_epochs', 'warmup_prefix', 'min_lr', 'cooldown_epochs', 'patience_epochs', 'decay_milestones',
    'decay_epochs', 'decay_rate', 'lr_noise', 'lr_noise_pct', 'lr_noise_std', 'lr_cycle_mul', 'lr_cycle_decay',
    'lr_cycle_limit', 'lr_k_decay', 'lr_decay_fn', 'lr_stable_timescale')
# Options of the start, which a checkpoint replaces, and options that other code compares.
_START = ('resume', 'no_resume_opt', 'start_epoch', 'stop_epoch', 'early_stop', 'early_stop_metric',
          'early_stop_min_delta', 'pretrained', 'pretrained_path', 'initial_checkpoint', 'head_init_scale',
          'head_init_bias', 'agmax_init_std', 'workers', 'data')
_NOT_COMPARED = LAUNCHER + _START + KEEPING


def compare_options(args: argparse.Namespace, saved: dict[str, Any], within_epoch: bool) -> tuple[list[str], bool]:
    """Name the options that differ from those that a checkpoint was made with.

    Args:
        args: Options, resolved as far as those of the checkpoint.
        saved: Those of the checkpoint.
        within_epoch: Whether it is to go on within an epoch.

    Returns:
        A line each, and whether the schedule of the learning rate is as it was.

    Raises:
        OptionError: one that cannot change.
    """
    differ = [name for name, value in vars(args).items()
              if name in saved and name not in _NOT_COMPARED and _plain(saved[name]) != _plain(value)]
    fixed = _FIXED + (() if args.no_resume_opt else _FIXED_WITH_OPTIMIZER)
    sized_by_epochs = ('epochs',) if args.train_size_schedule == 'progressive' else ()
    for name in differ:
        values = f'{_shown(getattr(args, name))} in place of {_shown(saved[name])}'
        if name in fixed:
            way_out = ' or drop its optimizer with --no-resume-opt' if name in _FIXED_WITH_OPTIMIZER else ''
            raise OptionError(f'--resume {args.resume} cannot go on with {flag_of(name)} {values}: leave it as it was'
                              f'{way_out}, or start from the weights with --initial-checkpoint')
        if within_epoch and name in _FIXED_WITHIN_EPOCH + sized_by_epochs:
            raise OptionError(f'--resume {args.resume} is within an epoch, whose rest would be another with '
                              f'{flag_of(name)} {values}: leave it as it was, or use a checkpoint of a whole epoch')
    lines = [f'{flag_of(name)} {_shown(getattr(args, name))} in place of {_shown(saved[name])}' for name in differ]
    no_part = {'epochs', 'cooldown_epochs'} if args.sched == 'plateau' else set()  # a metric leads it, to whatever end
    return lines, not set(differ) & set(_SCHEDULE) - no_part


def describe_data(train: Dataset, validation: Dataset | None) -> dict[str, Any]:
    """The number of samples (None if read in sequence) and the class names (None if unknown) of both splits."""
    def describe(dataset: Any) -> dict[str, Any] | None:
        if dataset is None:
            return None
        samples = None if isinstance(dataset, IterableDataset) else len(dataset)
        return {'samples': samples, 'classes': class_names(dataset)}
    return {'train': describe(train), 'validation': describe(validation)}


def compare_views(now: dict[str, Any], saved: dict[str, Any]) -> str:
    """A line if views are made in another way than before, which memory and packages decide too, '' if not.

    Args:
        now, saved: Descriptions of the data with the words of views_of().
    """
    before = saved.get('views', now['views'])
    return '' if before == now['views'] else (
        f"views are made {now['views']} in place of {before}, see --augment-backend and --image-memory")


def compare_data(args: argparse.Namespace, now: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Name what of the data changed since a checkpoint.

    Raises:
        OptionError: the classes are others: the outputs of the model would mean something else.
    """
    lines = []
    for split in ('train', 'validation'):
        description, before = now[split], saved.get(split)
        if not description or not before:
            continue
        classes, known = (list(map(normalised, names or ())) for names in (description['classes'], before['classes']))
        if classes and known and not same_names(classes, known):
            gone = [name for name in known if name not in classes]
            new = [name for name in classes if name not in known]
            what = f'without {listed(gone, 4)}' if gone else f'with {listed(new, 4)}' if new else 'reordered'
            raise OptionError(f'--resume {args.resume}: the classes of the {split} data changed since ({what}): '
                              'restore them, or start from the weights with --initial-checkpoint')
        if before.get('samples', description['samples']) != description['samples']:
            lines.append(f"{description['samples']} samples in the {split} data in place of {before['samples']}")
    return lines


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
