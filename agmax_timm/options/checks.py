"""Checks of the values of options. Each yields one line with the flag, the value and the remedy for each problem."""
import importlib.util
from collections.abc import Iterator

from ..base.command_line import flag_of
from ..base.processes import launched_processes
from ..base.text import even_next_to
from .combinations import check_combinations
from .data_kinds import DATASETS, check_source, in_sequence, needs_classes, needs_index
from .declare import problems
from .derived import METRICS, WEIGHTED, batch_sizes, loss_name, mixing
from .device import Device
from .hub_names import check_hub
from .parsers import AnyOptions, TrainOptions, ValidateOptions
from .paths import check_paths


def check_train_args(options: TrainOptions) -> Iterator[str]:
    """Yield the problems of single options of train.py and of those that belong together. The first one counts."""
    for check in (problems, check_paths, _check_augmentation, _check_input, _check_task, _check_mixing,
                  _check_precision, _check_run, check_hub, check_combinations):
        yield from check(options)


def check_validate_args(options: ValidateOptions) -> Iterator[str]:
    """Do the same as check_train_args for validate.py."""
    for check in (problems, check_paths, _check_input, _check_precision, _check_targets, check_measurements,
                  _check_validation_loader, _check_robustness, _check_attack):
        yield from check(options)


def _check_input(options: AnyOptions) -> Iterator[str]:
    kind, slash, name = options.dataset.partition('/')
    if slash and (kind.lower() not in DATASETS or not name):
        yield f"--dataset '{options.dataset}': must be TYPE/NAME, with one of the types {', '.join(DATASETS)}"
    yield from check_source(options)
    size = options.input_size
    if size and options.in_chans and size[0] != options.in_chans:
        yield (f"--in-chans {options.in_chans} and --input-size {' '.join(map(str, size))} are two numbers of "
               'channels: drop one of them')
    channels = options.in_chans or (size[0] if size else 3)
    for name in ('mean', 'std'):
        values = getattr(options, name)
        # The run that wrote the checkpoint may have another number of channels.
        if values is not None and len(values) not in (1, channels) and not (
                isinstance(options, ValidateOptions) and options.checkpoint):
            yield f'{flag_of(name)} needs one value, or {channels} for as many channels, got {len(values)}'


def _check_augmentation(options: TrainOptions) -> Iterator[str]:
    if options.no_aug and (options.cutout or options.lighting or options.train_crop_mode == 'pad'):
        yield '--no-aug turns augmentation off: drop it, or drop --cutout, --lighting and --train-crop-mode pad'
    if options.scale[1] > 1. and options.train_crop_mode in (None, 'rrc'):
        yield f'--scale must be shares of the image, at most 1, got {options.scale[0]} {options.scale[1]}'


def _check_task(options: TrainOptions) -> Iterator[str]:
    yield from _check_targets(options)
    for flag, name in (('--bce-loss', 'bce'), ('--jsd-loss', 'jsd')):
        if getattr(options, f'{name}_loss') and loss_name(options) != name:
            yield f'{flag} is --loss {name}, got --loss {loss_name(options)}: drop one of them'
    yield from _check_loss(options)
    if options.class_stats == 'auto':
        yield from needs_classes(options, '--class-stats auto')
    if loss_name(options) == 'jsd' and options.aug_splits < 2:
        yield '--jsd-loss compares augmentation splits: add --aug-splits 2 or more'
    names = METRICS[options.task] if options.val_split else ('loss',)
    if options.val_split and options.eval_metric not in names:
        yield f"--eval-metric must be one of {', '.join(names)} for --task {options.task}, got '{options.eval_metric}'"
    if options.early_stop_metric is not None and options.early_stop_metric not in names:
        when = '' if options.val_split else ' without validation'
        yield f"--early-stop-metric must be one of {', '.join(names)}{when}, got '{options.early_stop_metric}'"
    if options.task == 'multilabel' and options.num_classes is None:
        yield '--task multilabel needs the number of labels: add --num-classes N'
    if options.kd_model_name and options.task == 'multilabel':
        yield '--kd-model-name distils one distribution over classes: drop it, or drop --task multilabel'


# Losses of timm by task, and those that only take hard targets.
_LOSSES = {
    'classification': ('ce', 'bce', 'asl', 'poly', 'jsd'),
    'multilabel': ('bce', 'asl', 'poly', 'twoway', 'zlpr', 'db'),
}
_HARD_TARGETS = {'classification': ('asl',), 'multilabel': ('twoway', 'zlpr')}


def _check_loss(options: TrainOptions) -> Iterator[str]:
    """Yield a line for targets and options that the loss does not take. timm refuses them when it makes the loss."""
    loss, task = loss_name(options), options.task
    if loss not in _LOSSES[task]:
        yield f"--loss {loss} is not for --task {task}: use one of {', '.join(_LOSSES[task])}"
    for name, losses in WEIGHTED[task].items():
        value = getattr(options, name)
        if value and loss not in losses:
            yield f"{flag_of(name)} '{value}' is not for --loss {loss}: drop it, or use --loss {' or '.join(losses)}"
    for name, default in (('poly_gamma', 0.), ('poly_alpha', None)):
        if getattr(options, name) != default and loss == 'poly' and task != 'multilabel':
            yield f'{flag_of(name)} is for --task multilabel: drop it'
    if loss in _HARD_TARGETS[task]:
        softening = {'mixup': options.mixup, 'cutmix': options.cutmix, 'cutmix_minmax': options.cutmix_minmax}
        if task == 'multilabel':  # asl of one class per image applies --smoothing to hard targets itself
            softening['smoothing'] = options.smoothing
        for name, value in softening.items():
            if value:
                yield (f'{flag_of(name)} gives soft targets, --loss {loss} only takes hard ones: drop it, or '
                       'use --loss bce')
    if loss == 'db' and not options.class_stats:
        yield '--loss db needs the number of images of each class: add --class-stats FILE'


def _check_targets(options: AnyOptions) -> Iterator[str]:
    if options.task == 'multilabel' and not (in_sequence(options) or options.dataset.lower().startswith('hfds/')):
        yield (f"--task multilabel needs labels that a folder cannot hold, got --dataset '{options.dataset}': use "
               'hfds/, hfids/, tfds/ or wds/')
    if options.target_format is not None and options.task != 'multilabel':
        yield f'--target-format {options.target_format} needs --task multilabel'


def check_measurements(options: ValidateOptions) -> Iterator[str]:
    """Yield a line for each measurement that the task does not have. The task may be that of the checkpoint."""
    if options.task != 'multilabel':
        return
    for name in ('real_labels', 'valid_labels', 'metrics_avg', 'corruptions', 'corruptions_dir', 'stress', 'agreement',
                 'attack', 'calibration'):
        if getattr(options, name):
            yield f'{flag_of(name)} is for one class per image, not for --task multilabel: drop it'


def _check_validation_loader(options: ValidateOptions) -> Iterator[str]:
    if options.tf_preprocessing:
        for flag, asked in (('--no-prefetcher', options.no_prefetcher), ('--naflex-loader', options.naflex_loader),
                            (f"--dataset '{options.dataset}'", options.dataset == 'demo')):
            if asked:
                yield f'--tf-preprocessing decodes image files to one size, for the prefetcher: drop it, or drop {flag}'
        if importlib.util.find_spec('tensorflow') is None:
            yield '--tf-preprocessing needs tensorflow-cpu: pip install tensorflow-cpu'
    for flag in ('channels_last', 'torchscript', 'aot_autograd', 'test_pool'):
        if options.naflex_loader and getattr(options, flag):
            yield f'{flag_of(flag)} is for images, --naflex-loader gives patches: drop one of them'


def _check_robustness(options: ValidateOptions) -> Iterator[str]:
    corruptions = '--corruptions-dir' if options.corruptions_dir else '--corruptions'
    asked = {corruptions: options.corruptions_dir or options.corruptions, '--stress': options.stress,
             '--agreement': options.agreement, '--attack': options.attack}
    flags = [flag for flag, value in asked.items() if value]
    transformed = [flag for flag in flags if flag != '--attack']
    drawn = [flag for flag in transformed if flag != '--corruptions-dir']
    if flags and options.naflex_loader:
        yield f'{flags[0]} is for images of one size: drop it, or drop --naflex-loader'
    if transformed and options.tf_preprocessing:
        yield f"{transformed[0]} needs timm's transforms: drop it, or drop --tf-preprocessing"
    if drawn:
        yield from needs_index(options, drawn[0])


def _check_attack(options: ValidateOptions) -> Iterator[str]:
    if options.attack:
        for flag, given, reason in (
                (f'--model-dtype {options.model_dtype}', options.model_dtype not in (None, 'float32'),
                 'rounds pixels by more than a step: use --amp'),
                ('--aot-autograd', options.aot_autograd, 'compiles no gradients of images: use --torchcompile')):
            if given:
                yield f'--attack cannot be combined with {flag}, which {reason}, or drop one of them'


def _check_mixing(options: TrainOptions) -> Iterator[str]:
    if options.cutmix_minmax is not None and not options.cutmix_minmax[0] < options.cutmix_minmax[1]:
        yield '--cutmix-minmax must go from small to large, got ' + ' '.join(map(str, options.cutmix_minmax))
    if not mixing(options):
        return
    flag = '--mixup' if options.mixup > 0. else '--cutmix'
    if options.naflex_loader:
        return  # NaFlex leaves the odd image as it is
    size_flag, sizes = batch_sizes(options)
    for size in sizes:
        if size % 2:
            yield f'{flag} needs an even batch, got {size_flag} {size}: use {even_next_to(size)}'
    if options.aug_splits:
        yield f'{flag} mixes images, --aug-splits {options.aug_splits} compares versions of one: drop one of them'


def _check_precision(options: Device) -> Iterator[str]:
    if options.amp and options.model_dtype not in (None, 'float32'):
        yield f'--amp keeps float32 weights, got --model-dtype {options.model_dtype}: drop one of them'


def _check_run(options: TrainOptions) -> Iterator[str]:
    # timm draws again until the noise is below --lr-noise-pct.
    if options.lr_noise is not None and options.lr_noise_std > 100. * options.lr_noise_pct:
        yield (f'--lr-noise-std {options.lr_noise_std} hardly ever draws below --lr-noise-pct '
               f'{options.lr_noise_pct}: use a smaller one')
    if options.tta > 1:
        yield (f'--tta {options.tta} averages {options.tta} predictions in a row, which are of different images: no '
               'evaluation loader gives several views of one; drop it')
    if options.resume == 'auto' and not options.experiment:
        yield '--resume auto continues in the folder of --experiment NAME: name it'
    if options.start_epoch is not None and options.stop_epoch is not None and options.start_epoch >= options.stop_epoch:
        yield (f'--start-epoch {options.start_epoch} is not before --stop-epoch {options.stop_epoch}: nothing would be '
               'trained')
    if options.seed + launched_processes() > 2 ** 32:
        yield f'--seed {options.seed} leaves no seed for the other processes: use a smaller one'
    if options.wandb_resume_id and not options.resume:
        yield f"--wandb-resume-id '{options.wandb_resume_id}' continues with a run: add --resume FILE"
