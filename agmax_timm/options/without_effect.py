"""Options that have no effect because of other options, and a warning for each. timm does not warn.

Most follow from `needs` and `unless` of the declarations. The rows here compare several options or numbers. Only values
that differ from the defaults give a warning, so a file of all options of a run gives the warnings of that run.
surprises.py has the warnings that need the length of a run.
"""
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from ..base.command_line import Parser, flag_of
from ..base.image_modes import timm_policy
from .data_kinds import kind_of
from .declare import declared, has_effect
from .derived import loss_name, mixing, takes_pos_weight
from .loss import Loss
from .parsers import AnyOptions, TrainOptions, ValidateOptions, saved_train_options
from .quantities import share_of

Options = TypeVar('Options')


@dataclass(frozen=True)
class Idle(Generic[Options]):
    """Options that have no effect if `when(options)`; braces in `words` are filled in with values of other options."""
    names: tuple[str, ...]
    when: Callable[[Options], object]
    words: str


def flag_with_values(condition: str) -> str:
    """Return a condition as words for a message: '--sched step or poly'."""
    name, *values = condition.split()
    *first, last = values or ['']
    return f"{flag_of(name)} {', '.join(first)}{' or ' if first else ''}{last}".rstrip()


def _differs(name: str, options: AnyOptions) -> bool:
    """Whether an option differs from its default."""
    return getattr(options, name) != declared(type(options))[name].default


def _lacks(condition: str, options: AnyOptions) -> bool:
    return not has_effect(options, condition)


def _declared_rows(options: type[AnyOptions]) -> Iterator[Idle[Any]]:
    """Rows of the options whose declaration has `needs` or `unless`.

    An option of `needs` must be on, as it may be by default. An option of `unless` replaces others with any value that
    is given, even 0 or ''; its default replaces nothing.
    """
    needs, unless = defaultdict(list), defaultdict(list)
    for name, option in declared(options).items():
        for other in option.unless:
            unless[other].append(name)
        for other in option.needs:
            needs[other].append(name)
    for other, names in unless.items():
        yield Idle(tuple(names), partial(_differs, other), f'with {flag_of(other)}')
    for other, names in needs.items():
        yield Idle(tuple(names), partial(_lacks, other), f'without {flag_with_values(other)}')


def _by_frequency(options: Loss, *kinds: str) -> bool:
    """Whether the weights of the loss are of these kinds."""
    return not {options.loss_class_weight, options.loss_pos_weight}.isdisjoint(kinds)


_BOTH: tuple[Idle[Any], ...] = (
    Idle(('dataset_download',), lambda o: kind_of(o) not in ('torch', 'hfids', 'tfds'),
         'without --dataset torch/, hfids/ or tfds/'),
    Idle(('dataset_trust_remote_code',), lambda o: kind_of(o) not in ('hfds', 'hfids'),
         'without --dataset hfds/ or hfids/'),
    Idle(('img_size',), lambda o: o.input_size and o.img_size and list(o.input_size[1:]) != 2 * [o.img_size],
         'with --input-size'),
)

_TRAINING: tuple[Idle[TrainOptions], ...] = (
    *_declared_rows(TrainOptions),
    *_BOTH,
    # data and model
    Idle(('val_split_seed',), lambda o: share_of(o.val_split) is None, 'without a share as --val-split, such as 0.1'),
    Idle(('eval_metric',), lambda o: not o.val_split and o.task == 'classification', 'without --val-split'),
    Idle(('worker_seeding',), lambda o: o.workers == 0, 'with --workers 0'),
    Idle(('pretrained',), lambda o: o.initial_checkpoint, 'with --initial-checkpoint, whose weights replace it'),
    Idle(('fuser',), lambda o: not o.torchscript, 'without --torchscript'),
    Idle(('drop_connect',), lambda o: True, 'with any model of timm: use --drop-path'),
    # augmentation and mixing
    Idle(('scale', 'ratio'), lambda o: o.train_crop_mode == 'pad', 'with --train-crop-mode pad'),
    Idle(('color_jitter', 'color_jitter_prob'), lambda o: o.aa and '3a' not in timm_policy(o.aa) and o.color_jitter,
         "with --aa '{aa}': use 3a or imagenet, which jitter colours too, or drop one of them"),
    Idle(('color_jitter_prob',), lambda o: not o.color_jitter, 'with --color-jitter 0'),
    Idle(('resplit',), lambda o: not o.reprob and not o.split_bn, 'without --reprob'),
    Idle(('resplit',), lambda o: o.naflex_loader and not o.split_bn, 'with --naflex-loader'),
    Idle(('mixup_prob', 'mixup_mode', 'mixup_off_epoch'), lambda o: not mixing(o),
         'without --mixup, --cutmix or --cutmix-minmax'),
    Idle(('mixup_switch_prob',), lambda o: not o.mixup or not (o.cutmix or o.cutmix_minmax),
         'without --mixup and --cutmix together'),
    Idle(('cutmix',), lambda o: o.cutmix_minmax is not None, 'with --cutmix-minmax, which is another CutMix'),
    # task and loss
    Idle(('multilabel_threshold',), lambda o: o.task != 'multilabel', 'without --task multilabel'),
    Idle(('asl_gamma_neg',), lambda o: o.task != 'multilabel' and not o.smoothing, 'with --smoothing 0'),
    Idle(('bce_sum', 'bce_target_thresh'), lambda o: loss_name(o) != 'bce', 'without --loss bce'),
    Idle(('bce_pos_weight',), lambda o: not takes_pos_weight(o), 'without --loss bce'),
    Idle(('class_stats',), lambda o: loss_name(o) != 'db' and not _by_frequency(
        o, 'inv_freq', 'effective_num', 'neg_pos'), 'without --loss db or a weight of the loss by frequency'),
    Idle(('loss_weight_power',), lambda o: not _by_frequency(o, 'inv_freq', 'neg_pos'),
         'without --loss-class-weight inv_freq or --loss-pos-weight neg_pos'),
    Idle(('loss_weight_beta',), lambda o: not _by_frequency(o, 'effective_num'),
         'without --loss-class-weight effective_num'),
    Idle(('loss_weight_max',), lambda o: not _by_frequency(o, 'inv_freq', 'effective_num', 'neg_pos'),
         'without a weight of the loss by frequency'),
    # distillation
    Idle(('kd_temperature',), lambda o: o.kd_distill_type == 'feature', 'with --kd-distill-type feature'),
    Idle(('kd_temperature',), lambda o: (o.kd_distill_type, o.kd_token_distill_type) == ('token', 'hard'),
         'with --kd-token-distill-type hard'),
    # schedule
    Idle(('patience_epochs',), lambda o: o.sched != 'plateau',
         'without --sched plateau: to end a run early, use --early-stop N'),
    Idle(('lr_noise', 'sched_on_updates'), lambda o: o.sched == 'none', 'with --sched none'),
    # With --warmup-prefix, --warmup-epochs also makes the run longer.
    Idle(('warmup_lr', 'warmup_epochs'), lambda o: o.sched == 'none' and o.warmup_epochs
         and not o.warmup_prefix, 'with --sched none: use --sched constant'),
    Idle(('lr_cycle_mul', 'lr_cycle_decay'), lambda o: o.lr_cycle_limit == 1,
         'without --lr-cycle-limit 2 or more'),
    Idle(('warmup_lr', 'warmup_prefix'), lambda o: o.warmup_epochs == 0 and o.warmup_lr,
         'with --warmup-epochs 0'),
    Idle(('decay_milestones',), lambda o: o.decay_milestones[0] >= o.epochs, 'with --epochs {epochs}'),
    Idle(('decay_epochs',), lambda o: o.sched == 'step' and o.decay_epochs >= o.epochs,
         'with --epochs {epochs}'),
)

_VALIDATION: tuple[Idle[ValidateOptions], ...] = (
    *_declared_rows(ValidateOptions),
    *_BOTH,
    Idle(('train_split', 'val_split_seed'), lambda o: share_of(o.split) is None and not o.checkpoint,
         'without a share as --split, such as 0.1'),
    Idle(('pretrained',), lambda o: o.checkpoint, 'with --checkpoint, whose weights replace it'),
    Idle(('fuser',), lambda o: not (o.torchscript or o.aot_autograd),
         'without --torchscript or --aot-autograd'),
    Idle(('crop_pct', 'crop_mode', 'crop_border_pixels'), lambda o: o.naflex_loader,
         'with --naflex-loader, which shows whole images'),
    Idle(('crop_pct', 'crop_mode', 'crop_border_pixels'), lambda o: o.tf_preprocessing,
         'with --tf-preprocessing'),
    Idle(('multilabel_threshold',), lambda o: o.task != 'multilabel' and not o.checkpoint,  # may be of one
         'without --task multilabel'),
    Idle(('severities',), lambda o: not (o.corruptions or o.corruptions_dir),
         'without --corruptions or --corruptions-dir'),
)


def idle_options(options: AnyOptions) -> Iterator[tuple[str, str]]:
    """Yield the name of each option without effect, and why. An option can have several reasons, or its default."""
    rows: tuple[Idle[Any], ...] = _TRAINING if isinstance(options, TrainOptions) else _VALIDATION
    for row in rows:
        if row.when(options):
            for name in row.names:
                yield name, row.words.format(**vars(options))


def changed_idle_options(options: AnyOptions) -> dict[str, str]:
    """Return the options without effect that differ from their defaults, and the first reason of each."""
    reasons: dict[str, str] = {}
    for name, words in idle_options(options):
        if name not in reasons and _differs(name, options):
            reasons[name] = words
    return reasons


def reset_idle(saved: dict[str, Any]) -> dict[str, Any]:
    """Reset the options of a run that have no effect to their defaults, so that warn_of_idle() names none.

    An option stays if its default would have an effect. It is left out if its default is None.

    Args:
        saved: Options that a run saved. All are returned if train.py does not accept the values.
    """
    try:
        options = saved_train_options(saved)
        idle = [name for name in changed_idle_options(options) if name in saved and not _default_acts(name, options)]
    except Exception:  # the values may have any type
        return saved
    if not idle:
        return saved
    defaults = {name: declared(TrainOptions)[name].default for name in idle}
    # Again, because other options may need these.
    return reset_idle({name: value for name, value in (saved | defaults).items() if value is not None})


def _default_acts(name: str, options: TrainOptions) -> bool:
    """Whether the default of an option has an effect: '--decay-epochs 200' of 150 epochs has none, 90 has one."""
    default = declared(type(options))[name].default
    return default is not None and name not in dict(idle_options(replace(options, **{name: default})))


def warn_of_idle(options: AnyOptions, parser: Parser) -> None:
    """Warn once of each option without effect that differs from its default."""
    for name, words in changed_idle_options(options).items():
        parser.warn(f'{flag_of(name)} has no effect {words}')
