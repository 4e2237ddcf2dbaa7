"""Values of options that cannot be: one line each, with the flag, the value and the way out."""
import argparse
import importlib.util
import os
from typing import Callable, Set

from ..data.modes import CROP_MODES, MIXUP_MODES
from .parser import Parser, flag_of

METRICS = {
    'classification': ('loss', 'top1', 'top5'),
    'multilabel': ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1'),
}


def resolve_task(args: argparse.Namespace, given: Set[str]) -> None:
    """Settle what other options decide, where the user gave no value of their own (`given`: the names they gave).

    --bce-loss and --jsd-loss are names of --loss; several labels an image are ranked by mAP and not smoothed.
    """
    if args.loss is None:
        args.loss = 'jsd' if args.jsd_loss else 'bce' if args.bce_loss else None
    if args.bce_pos_weight is not None and not args.loss_pos_weight:
        args.loss_pos_weight = str(args.bce_pos_weight)
    if args.task == 'multilabel':
        args.eval_metric = args.eval_metric if 'eval_metric' in given else 'map'
        args.smoothing = args.smoothing if 'smoothing' in given else 0.


def check_train_args(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse values that cannot be, by flag, value and remedy; `parser` as declared, without files."""
    error = parser.error
    for flag in ('batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'checkpoint_hist'):
        if getattr(args, flag) < 1:
            error(f'{flag_of(flag)} must be 1 or more, got {getattr(args, flag)}')
    for flag in ('mixup', 'cutmix', 'lighting', 'cutout', 'workers', 'tta', 'aug_repeats'):
        if getattr(args, flag) < 0:
            error(f'{flag_of(flag)} must be 0 or more, got {getattr(args, flag)}')
    for flag in ('mixup_prob', 'mixup_switch_prob', 'smoothing', 'hflip', 'vflip', 'reprob', 'train_size_random_mix',
                 'max_damaged'):
        if not 0. <= getattr(args, flag) <= 1.:
            error(f'{flag_of(flag)} must be between 0 and 1, got {getattr(args, flag)}')
    if args.train_crop_mode not in (None, *CROP_MODES):
        error(f"--train-crop-mode must be one of {', '.join(CROP_MODES)}, got '{args.train_crop_mode}'")
    if args.no_aug and (args.cutout or args.lighting or args.train_crop_mode == 'pad'):
        error('--no-aug turns augmentation off: drop it, or drop --cutout, --lighting and --train-crop-mode pad')
    _check_task(args, error)
    _check_mixing(args, error)
    _check_precision(args, error)
    _check_fuser(args, error)
    _check_run(args, error)
    _check_hub(args, error)


def check_validate_args(args: argparse.Namespace, parser: Parser) -> None:
    """The same for validate.py."""
    for flag in ('batch_size', 'log_freq', 'num_gpu'):
        if getattr(args, flag) < 1:
            parser.error(f'{flag_of(flag)} must be 1 or more, got {getattr(args, flag)}')
    if args.workers < 0:
        parser.error(f'--workers must be 0 or more, got {args.workers}')
    if args.crop_mode not in (None, 'squash', 'border', 'center'):
        parser.error(f"--crop-mode must be squash, border or center, got '{args.crop_mode}'")
    _check_precision(args, parser.error)
    _check_fuser(args, parser.error)
    _check_targets(args, parser.error)
    _check_labels(args, parser.error)
    _check_validation_loader(args, parser)
    folder = os.path.dirname(args.results_file)
    if folder and not os.path.isdir(folder):
        parser.error(f'--results-file {args.results_file}: no folder {folder}: make it first')


def in_sequence(args: argparse.Namespace) -> bool:
    """Whether the data is of a kind that is read in sequence, without an index."""
    return args.dataset.partition('/')[0].lower() in ('hfids', 'tfds', 'wds')


def mixing(args: argparse.Namespace) -> bool:
    """Whether the options ask for MixUp or CutMix."""
    return args.mixup > 0. or args.cutmix > 0. or args.cutmix_minmax is not None


def _check_task(args: argparse.Namespace, error: Callable) -> None:
    _check_targets(args, error)
    for flag, name in (('--bce-loss', 'bce'), ('--jsd-loss', 'jsd')):
        if getattr(args, f'{name}_loss') and args.loss != name:
            error(f'{flag} is --loss {name}, got --loss {args.loss}: drop one of them')
    if args.loss == 'jsd' and args.aug_splits < 2:
        error('--jsd-loss compares augmentation splits: add --aug-splits 2 or more')
    names = METRICS[args.task] if args.val_split else ('loss',)
    if args.val_split and args.eval_metric not in names:
        error(f"--eval-metric must be one of {', '.join(names)} for --task {args.task}, got '{args.eval_metric}'")
    if args.task == 'multilabel' and args.num_classes is None:
        error('--task multilabel needs the number of labels: add --num-classes N')
    if args.tta > 1 and (args.validation_batch_size or args.batch_size) % args.tta:
        error(f'--tta {args.tta} averages {args.tta} images in a row, got a batch of '
              f'{args.validation_batch_size or args.batch_size}: use a --validation-batch-size that it divides')
    if args.task == 'multilabel' and args.tta > 1:
        error(f'--tta {args.tta} averages predictions of one class an image: drop it, or drop --task multilabel')


def _check_targets(args: argparse.Namespace, error: Callable) -> None:
    if args.task == 'multilabel' and not (in_sequence(args) or args.dataset.lower().startswith('hfds/')):
        error(f"--task multilabel needs labels that a folder cannot hold, got --dataset '{args.dataset}': use "
              'hfds/, hfids/, tfds/ or wds/')
    if args.target_format is not None and args.task != 'multilabel':
        error(f'--target-format {args.target_format} needs --task multilabel')
    if not 0. < args.multilabel_threshold < 1.:
        error(f'--multilabel-threshold must be between 0 and 1, got {args.multilabel_threshold}')


def _check_labels(args: argparse.Namespace, error: Callable) -> None:
    for flag, value in (('--real-labels', args.real_labels), ('--valid-labels', args.valid_labels),
                        ('--metrics-avg', args.metrics_avg)):
        if value and args.task == 'multilabel':
            error(f'{flag} {value} is for one class an image: drop it, or drop --task multilabel')
        if value and flag != '--metrics-avg' and not os.path.isfile(value):
            error(f'{flag} {value}: no such file')
    if args.metrics_avg:
        _check_installed('sklearn', f'--metrics-avg {args.metrics_avg}', 'scikit-learn', error)


def _check_validation_loader(args: argparse.Namespace, parser: Parser) -> None:
    if args.tf_preprocessing:
        for flag, asked in (('--no-prefetcher', args.no_prefetcher), ('--naflex-loader', args.naflex_loader),
                            (f'--dataset {args.dataset}', args.dataset == 'demo')):
            if asked:
                parser.error(f'--tf-preprocessing gives images of one size, from their files, to the prefetcher: drop '
                             f'it, or drop {flag}')
        _check_installed('tensorflow', '--tf-preprocessing', 'tensorflow-cpu', parser.error)
    if not args.naflex_loader:
        return
    for flag in ('channels_last', 'torchscript', 'aot_autograd', 'test_pool'):
        if getattr(args, flag):
            parser.error(f'{flag_of(flag)} is for images, --naflex-loader gives patches: drop one of them')
    if args.naflex_max_seq_len < 1:
        parser.error(f'--naflex-max-seq-len must be 1 or more, got {args.naflex_max_seq_len}')
    for flag in ('crop_pct', 'crop_mode', 'crop_border_pixels'):
        if getattr(args, flag) is not None:
            parser.warn(f'{flag_of(flag)} has no effect with --naflex-loader, which shows whole images')


def _check_installed(module: str, flag: str, package: str, error: Callable) -> None:
    if importlib.util.find_spec(module) is None:
        error(f'{flag} needs {package}: pip install {package}')


def _check_mixing(args: argparse.Namespace, error: Callable) -> None:
    if args.mixup_mode not in MIXUP_MODES:
        error(f"--mixup-mode must be one of {', '.join(MIXUP_MODES)}, got '{args.mixup_mode}'")
    if args.cutmix_minmax is not None and len(args.cutmix_minmax) != 2:
        error(f'--cutmix-minmax needs two values, got {len(args.cutmix_minmax)}')
    if not mixing(args):
        return
    flag = '--mixup' if args.mixup > 0. else '--cutmix'
    if args.naflex_loader:
        return  # NaFlex leaves the odd image as it is
    flags = {'--batch-size': [args.batch_size], '--train-batch-sizes': args.train_batch_sizes or []}
    for size_flag, sizes in flags.items():
        for size in sizes:
            if size % 2:
                error(f'{flag} needs an even batch, got {size_flag} {size}: use {max(2, size - 1)} or {size + 1}')
    if args.aug_splits:
        error(f'{flag} mixes images, --aug-splits {args.aug_splits} compares versions of one: drop one of them')


def _check_precision(args: argparse.Namespace, error: Callable) -> None:
    if args.amp and args.model_dtype not in (None, 'float32'):
        error(f'--amp keeps float32 weights, got --model-dtype {args.model_dtype}: drop one of them')


def _check_fuser(args: argparse.Namespace, error: Callable) -> None:
    if args.fuser not in ('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'):
        error(f"--fuser must be te, old or nvfuser, got '{args.fuser}'")


def _check_run(args: argparse.Namespace, error: Callable) -> None:
    if args.resume == 'auto' and not args.experiment:
        error('--resume auto goes on in the folder of --experiment NAME: name it')
    if args.stop_epoch is not None and args.stop_epoch < 1:
        error(f'--stop-epoch must be 1 or more, got {args.stop_epoch}')
    for epoch in args.save_epochs:
        if epoch < 1:
            error(f'--save-epochs must be 1 or more each, got {epoch}')
    if args.wandb_resume_id and not args.resume:
        error(f'--wandb-resume-id {args.wandb_resume_id} goes on with a run: add --resume FILE')


def _check_hub(args: argparse.Namespace, error: Callable) -> None:
    if not args.push_to_hub:
        for name in ('hub_private', 'hub_revision', 'hub_pr'):
            if getattr(args, name):
                error(f'{flag_of(name)} needs --push-to-hub OWNER/NAME')
        return
    from ..hub import HubError, check_name, check_revision  # the client is needed for this flag alone
    for flag, check, value in (('--push-to-hub', check_name, args.push_to_hub),
                               ('--hub-revision', check_revision, args.hub_revision)):
        try:
            check(value)
        except HubError as problem:
            error(f'{flag} {value}: {problem}')
    if args.hub_pr and args.hub_revision not in ('', 'main'):
        error('--hub-pr opens a pull request against main: drop it, or drop --hub-revision')
