"""Values of options that cannot be: one line each, with the flag, the value and the way out."""
import argparse
import importlib.util
import os
from collections.abc import Callable

from ..base.command_line import Parser, flag_of
from ..base.errors import OptionError
from ..base.licences import check_license
from .data_kinds import check_source, kind_of
from .paths import check_paths
from .ranges import check_ranges

METRICS = {
    'classification': ('loss', 'top1', 'top5'),
    'multilabel': ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1'),
}


_DATASETS = ('torch', 'hfds', 'hfids', 'tfds', 'wds')


def resolve_task(args: argparse.Namespace, given: set[str]) -> None:
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
    check_ranges(args, error)
    check_paths(args, error)
    if args.no_aug and (args.cutout or args.lighting or args.train_crop_mode == 'pad'):
        error('--no-aug turns augmentation off: drop it, or drop --cutout, --lighting and --train-crop-mode pad')
    _check_input(args, parser)
    _check_augmentation(args, parser)
    _check_task(args, error)
    _check_mixing(args, error)
    _check_precision(args, error)
    _check_run(args, error)
    _check_hub(args, error)


def check_validate_args(args: argparse.Namespace, parser: Parser) -> None:
    """The same for validate.py."""
    check_ranges(args, parser.error)
    check_paths(args, parser.error)
    _check_input(args, parser)
    _check_precision(args, parser.error)
    _check_targets(args, parser.error)
    _check_labels(args, parser.error)
    _check_validation_loader(args, parser)
    _check_robustness(args, parser)


def in_sequence(args: argparse.Namespace) -> bool:
    """Whether the data is of a kind that is read in sequence, without an index."""
    return kind_of(args) in ('hfids', 'tfds', 'wds')


def loss_name(args: argparse.Namespace) -> str:
    """The loss by its name in --loss, whose default depends on the task."""
    return args.loss or ('bce' if args.task == 'multilabel' else 'ce')


def mixing(args: argparse.Namespace) -> bool:
    """Whether the options ask for MixUp or CutMix."""
    return args.mixup > 0. or args.cutmix > 0. or args.cutmix_minmax is not None


def _check_input(args: argparse.Namespace, parser: Parser) -> None:
    error = parser.error
    kind, slash, name = args.dataset.partition('/')
    if slash and (kind.lower() not in _DATASETS or not name):
        error(f"--dataset {args.dataset}: must be TYPE/NAME, with one of the types {', '.join(_DATASETS)}")
    check_source(args, error)
    size, side = args.input_size, args.img_size
    if size and side and size[1:] != [side, side]:
        parser.warn(f"--img-size {side} has no effect with --input-size {' '.join(map(str, size))}")
    if size and args.in_chans and size[0] != args.in_chans:
        error(f"--in-chans {args.in_chans} and --input-size {' '.join(map(str, size))} are two numbers of channels: "
              'drop one of them')
    channels = args.in_chans or (size[0] if size else 3)
    for name in ('mean', 'std'):
        values = getattr(args, name)
        # The run that wrote a checkpoint may know of other channels.
        if values is not None and len(values) not in (1, channels) and not getattr(args, 'checkpoint', ''):
            error(f'{flag_of(name)} needs one value, or {channels} for as many channels, got {len(values)}')


def _check_augmentation(args: argparse.Namespace, parser: Parser) -> None:
    if args.scale[1] > 1. and args.train_crop_mode in (None, 'rrc'):
        parser.error(f'--scale must be shares of the image, at most 1, got {args.scale[0]} {args.scale[1]}')
    if args.lr_noise is not None and args.lr_noise_std > 100. * args.lr_noise_pct:  # timm draws until one is small
        parser.error(f'--lr-noise-std {args.lr_noise_std} hardly ever draws below --lr-noise-pct {args.lr_noise_pct}: '
                     'use a smaller one')


def _check_task(args: argparse.Namespace, error: Callable) -> None:
    _check_targets(args, error)
    for flag, name in (('--bce-loss', 'bce'), ('--jsd-loss', 'jsd')):
        if getattr(args, f'{name}_loss') and args.loss != name:
            error(f'{flag} is --loss {name}, got --loss {args.loss}: drop one of them')
    _check_loss(args, error)
    if args.loss == 'jsd' and args.aug_splits < 2:
        error('--jsd-loss compares augmentation splits: add --aug-splits 2 or more')
    names = METRICS[args.task] if args.val_split else ('loss',)
    if args.val_split and args.eval_metric not in names:
        error(f"--eval-metric must be one of {', '.join(names)} for --task {args.task}, got '{args.eval_metric}'")
    if args.early_stop_metric is not None and args.early_stop_metric not in names:
        way_out = '' if args.val_split else ', which there is without validation'
        error(f"--early-stop-metric must be one of {', '.join(names)}{way_out}, got '{args.early_stop_metric}'")
    if args.task == 'multilabel' and args.num_classes is None:
        error('--task multilabel needs the number of labels: add --num-classes N')
    if args.tta > 1:
        error(f'--tta {args.tta} averages {args.tta} predictions in a row, which are of different images: no '
              'evaluation loader gives several views of one; drop it')


# Losses of timm by task, and those that only take hard targets.
_LOSSES = {
    'classification': ('ce', 'bce', 'asl', 'poly', 'jsd'),
    'multilabel': ('bce', 'asl', 'poly', 'twoway', 'zlpr', 'db'),
}
_HARD_TARGETS = {'classification': ('asl',), 'multilabel': ('twoway', 'zlpr')}


def _check_loss(args: argparse.Namespace, error: Callable) -> None:
    """Refuse targets that the loss does not take. timm refuses them when it makes the loss."""
    if args.loss is None:
        return
    if args.loss not in _LOSSES[args.task]:
        error(f"--loss {args.loss} is not for --task {args.task}: use one of {', '.join(_LOSSES[args.task])}")
    if args.loss in _HARD_TARGETS[args.task]:
        softening = {'mixup': args.mixup, 'cutmix': args.cutmix, 'cutmix_minmax': args.cutmix_minmax}
        if args.task == 'multilabel':  # asl of one class an image applies --smoothing to hard targets itself
            softening['smoothing'] = args.smoothing
        for name, value in softening.items():
            if value:
                error(f'{flag_of(name)} gives soft targets, --loss {args.loss} only takes hard ones: drop it, or use '
                      '--loss bce')
    if args.loss == 'db' and not args.class_stats:
        error('--loss db needs the number of images of each class: add --class-stats FILE')


def _check_targets(args: argparse.Namespace, error: Callable) -> None:
    if args.task == 'multilabel' and not (in_sequence(args) or args.dataset.lower().startswith('hfds/')):
        error(f"--task multilabel needs labels that a folder cannot hold, got --dataset '{args.dataset}': use "
              'hfds/, hfids/, tfds/ or wds/')
    if args.target_format is not None and args.task != 'multilabel':
        error(f'--target-format {args.target_format} needs --task multilabel')


def _check_labels(args: argparse.Namespace, error: Callable) -> None:
    for flag, value in (('--real-labels', args.real_labels), ('--valid-labels', args.valid_labels),
                        ('--metrics-avg', args.metrics_avg)):
        if value and args.task == 'multilabel':
            error(f'{flag} {value} is for one class an image: drop it, or drop --task multilabel')


def _check_validation_loader(args: argparse.Namespace, parser: Parser) -> None:
    if args.tf_preprocessing:
        for flag, asked in (('--no-prefetcher', args.no_prefetcher), ('--naflex-loader', args.naflex_loader),
                            (f'--dataset {args.dataset}', args.dataset == 'demo')):
            if asked:
                parser.error(f'--tf-preprocessing gives images of one size, from their files, to the prefetcher: drop '
                             f'it, or drop {flag}')
        _check_installed('tensorflow', '--tf-preprocessing', 'tensorflow-cpu', parser.error)
    for flag in ('channels_last', 'torchscript', 'aot_autograd', 'test_pool'):
        if args.naflex_loader and getattr(args, flag):
            parser.error(f'{flag_of(flag)} is for images, --naflex-loader gives patches: drop one of them')


def _check_robustness(args: argparse.Namespace, parser: Parser) -> None:
    made = bool(args.corruptions) and not args.corruptions_dir
    read = made or bool(args.corruptions_dir)
    augmented = made or args.stress or args.agreement
    asked = {'--corruptions-dir' if args.corruptions_dir else '--corruptions': read, '--stress': args.stress,
             '--agreement': args.agreement, '--attack': args.attack}
    flags = [flag for flag, value in asked.items() if value]
    if flags or args.calibration:
        flag = (flags or ['--calibration'])[0]
        if args.task == 'multilabel':
            parser.error(f'{flag} is for one class an image: drop it, or drop --task multilabel')
    if flags and args.naflex_loader:
        parser.error(f'{flags[0]} is for images of one size: drop it, or drop --naflex-loader')
    if (read or augmented) and args.tf_preprocessing:
        parser.error(f"{flags[0]} needs timm's transforms: drop it, or drop --tf-preprocessing")
    if augmented and in_sequence(args):
        flag = next(flag for flag in flags if flag not in ('--corruptions-dir', '--attack'))
        parser.error(f'{flag} draws by the index of an image, --dataset {args.dataset} has none: drop it, or use a '
                     'folder or hfds/')
    _check_attack(args, parser)


def _check_attack(args: argparse.Namespace, parser: Parser) -> None:
    if args.attack:
        for flag, given, reason in (
                (f'--model-dtype {args.model_dtype}', args.model_dtype not in (None, 'float32'),
                 'rounds pixels by more than a step: use --amp'),
                ('--aot-autograd', args.aot_autograd, 'compiles no gradients of images: use --torchcompile')):
            if given:
                parser.error(f'--attack and {flag}, which {reason}, or drop one of them')


def _check_installed(module: str, flag: str, package: str, error: Callable) -> None:
    if importlib.util.find_spec(module) is None:
        error(f'{flag} needs {package}: pip install {package}')


def _check_mixing(args: argparse.Namespace, error: Callable) -> None:
    if args.cutmix_minmax is not None and not args.cutmix_minmax[0] < args.cutmix_minmax[1]:
        error('--cutmix-minmax must go from small to large, got ' + ' '.join(map(str, args.cutmix_minmax)))
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


def _check_run(args: argparse.Namespace, error: Callable) -> None:
    if args.resume == 'auto' and not args.experiment:
        error('--resume auto goes on in the folder of --experiment NAME: name it')
    if args.start_epoch is not None and args.stop_epoch is not None and args.start_epoch >= args.stop_epoch:
        error(f'--start-epoch {args.start_epoch} is not before --stop-epoch {args.stop_epoch}: nothing would be '
              'trained')
    if args.seed + int(os.environ.get('WORLD_SIZE', 1)) > 2 ** 32:
        error(f'--seed {args.seed} leaves no seed for the other processes: use a smaller one')
    if args.wandb_resume_id and not args.resume:
        error(f'--wandb-resume-id {args.wandb_resume_id} goes on with a run: add --resume FILE')


def _check_hub(args: argparse.Namespace, error: Callable) -> None:
    try:
        check_license(args.license)
    except OptionError as problem:
        error(str(problem))
    if args.hub_dataset:
        from ..weights.hub import HubError, check_dataset
        try:
            check_dataset(args.hub_dataset)
        except HubError as problem:
            error(str(problem))
    if not args.push_to_hub:
        for name in ('hub_private', 'hub_revision', 'hub_pr', 'hub_replace_card', 'hub_replace_files'):
            if getattr(args, name):
                error(f'{flag_of(name)} needs --push-to-hub OWNER/NAME')
        return
    from ..weights.hub import HubError, check_name, check_revision
    for flag, check, value in (('--push-to-hub', check_name, args.push_to_hub),
                               ('--hub-revision', check_revision, args.hub_revision)):
        try:
            check(value)
        except HubError as problem:
            error(f'{flag} {value}: {problem}')
    if args.hub_pr and args.hub_revision not in ('', 'main'):
        error('--hub-pr opens a pull request against main: drop it, or drop --hub-revision')
