"""Values and combinations of options that cannot be: one line each, with the flag, the value and the way out."""
import argparse
import importlib.util
import os
import sys
from typing import Callable, Set

from ..data.modes import CROP_MODES, MIXUP_MODES

_AGMAX_OPTIONS = ('agmax_loss', 'agmax_weight', 'agmax_divergence_weight', 'agmax_units', 'agmax_init_std')

# What --agmax cannot be combined with: the flag, whether the options ask for it, why not, and the way out.
NOT_WITH_AGMAX = (
    ('--aug-splits', lambda args: args.aug_splits > 0,
     'makes versions of one crop, the first of them clean, where AgMax draws two views', 'use --aa for both views'),
    ('--jsd-loss', lambda args: args.loss == 'jsd',
     'compares the splits of --aug-splits as AgMax compares its views', 'use --agmax-loss kl or drop one of them'),
    ('--split-bn', lambda args: args.split_bn,
     'gives a clean split statistics of its own, and no view is clean', 'drop it'),
    ('--resplit', lambda args: args.resplit,
     'erases in half of a batch, which is one view', 'drop it'),
    ('--task multilabel', lambda args: args.task == 'multilabel',
     'has no distribution over classes whose marginals could be taken', 'drop one of them'),
    ('--kd-distill-type feature', lambda args: args.kd_model_name and args.kd_distill_type == 'feature',
     'trains on features, AgMax on logits alone', 'use --kd-distill-type logit'),
    ('--kd-distill-type token', lambda args: args.kd_model_name and args.kd_distill_type == 'token',
     'trains two heads, AgMax pairs the logits of one', 'use --kd-distill-type logit'),
    ('--torchscript', lambda args: args.torchscript,
     'hides the head and the number of classes from AgMax', 'use --torchcompile'),
)

# The same of --naflex-loader.
_NOT_WITH_NAFLEX = (
    ('--train-img-sizes', lambda args: args.train_img_sizes is not None, 'is another way to vary the size'),
    ('--use-multi-epochs-loader', lambda args: args.use_multi_epochs_loader, 'is another loader'),
    ('--aug-splits', lambda args: args.aug_splits > 0, 'has a loader of its own'),
    ('--aug-repeats', lambda args: args.aug_repeats > 0, 'has a sampler of its own'),
    ('--cutmix-minmax', lambda args: args.cutmix_minmax is not None, 'knows boxes of one size of image: use --cutmix'),
    ('--mixup-mode', lambda args: args.mixup_mode != 'batch', 'knows images of one size'),
    ('--kd-model-name', lambda args: args.kd_model_name, 'gives the teacher images, not patches'),
    ('--cutout', lambda args: args.cutout, 'cuts images, not patches: use --reprob'),
    ('--lighting', lambda args: args.lighting, 'is for images of one size'),
    ('--train-crop-mode pad', lambda args: args.train_crop_mode == 'pad', 'is for images of one size'),
    ('--save-images', lambda args: args.save_images, 'draws images, not patches'),
)

# Options that say nothing without another one: timm's scripts take them in silence.
_ONLY_WITH = (
    ('train_img_sizes', ('train_batch_sizes', 'train_size_probs', 'train_size_schedule', 'train_size_schedule_spread',
                         'train_size_random_mix', 'train_batches_per_epoch', 'variable_batch_loss_scale')),
    ('naflex_loader', ('naflex_train_seq_lens', 'naflex_max_seq_len', 'naflex_patch_sizes', 'naflex_patch_size_probs',
                       'naflex_loss_scale', 'naflex_patchify_channels_first')),
    ('naflex_patch_sizes', ('naflex_patch_size_probs',)),
    ('kd_model_name', ('kd_distill_type', 'kd_loss_type', 'kd_temperature', 'kd_student_feature_dim',
                       'kd_teacher_feature_dim', 'kd_token_distill_type', 'distill_loss_weight', 'task_loss_weight')),
    ('log_wandb', ('wandb_project', 'wandb_tags', 'wandb_resume_id')),
    ('model_ema', ('model_ema_decay', 'model_ema_warmup', 'model_ema_force_cpu')),
    ('pretrained', ('pretrained_path', 'pretrained_cfg_overlay')),
)

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


def check_train_args(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse values and combinations that cannot be, by flag, value and remedy; `parser` as declared, without files."""
    error = parser.error
    for flag in ('batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'checkpoint_hist'):
        if getattr(args, flag) < 1:
            error(f'{_flag(flag)} must be 1 or more, got {getattr(args, flag)}')
    for flag in ('mixup', 'cutmix', 'lighting', 'cutout', 'workers', 'tta', 'aug_repeats'):
        if getattr(args, flag) < 0:
            error(f'{_flag(flag)} must be 0 or more, got {getattr(args, flag)}')
    for flag in ('mixup_prob', 'mixup_switch_prob', 'smoothing', 'hflip', 'vflip', 'reprob', 'train_size_random_mix',
                 'multilabel_threshold'):
        if not 0. <= getattr(args, flag) <= 1.:
            error(f'{_flag(flag)} must be between 0 and 1, got {getattr(args, flag)}')
    if args.train_crop_mode not in (None, *CROP_MODES):
        error(f"--train-crop-mode must be one of {', '.join(CROP_MODES)}, got '{args.train_crop_mode}'")
    if args.no_aug and (args.cutout or args.lighting or args.train_crop_mode == 'pad'):
        error('--no-aug turns augmentation off: drop it, or drop --cutout, --lighting and --train-crop-mode pad')
    _check_task(args, error)
    _check_mixing(args, error)
    _check_splits(args, error)
    _check_resolutions(args, error)
    _check_naflex(args, error)
    _check_precision(args, error)
    _check_script(args, error)
    _check_distillation(args, error)
    _check_run(args, error)
    _check_agmax(args, parser)
    _check_hub(args, error)
    _warn_of_idle(args, parser)


def check_validate_args(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """The same for validate.py."""
    for flag in ('batch_size', 'log_freq', 'num_gpu'):
        if getattr(args, flag) < 1:
            parser.error(f'{_flag(flag)} must be 1 or more, got {getattr(args, flag)}')
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
    if args.task == 'multilabel' and args.tta > 1:
        error(f'--tta {args.tta} averages predictions of one class an image: drop it, or drop --task multilabel')


def _check_targets(args: argparse.Namespace, error: Callable) -> None:
    if args.task == 'multilabel' and args.dataset.split('/')[0].lower() not in ('hfds', 'hfids', 'tfds', 'wds'):
        error(f"--task multilabel needs labels that a folder cannot hold, got --dataset '{args.dataset}': use "
              'hfds/, hfids/, tfds/ or wds/')
    if args.target_format is not None and args.task != 'multilabel':
        error(f'--target-format {args.target_format} needs --task multilabel')


def _check_labels(args: argparse.Namespace, error: Callable) -> None:
    for flag, value in (('--real-labels', args.real_labels), ('--valid-labels', args.valid_labels),
                        ('--metrics-avg', args.metrics_avg)):
        if value and args.task == 'multilabel':
            error(f'{flag} {value} is for one class an image: drop it, or drop --task multilabel')
        if value and flag != '--metrics-avg' and not os.path.isfile(value):
            error(f'{flag} {value}: no such file')
    if args.metrics_avg:
        _check_installed('sklearn', f'--metrics-avg {args.metrics_avg}', 'scikit-learn', error)
    if not 0. < args.multilabel_threshold < 1.:
        error(f'--multilabel-threshold must be between 0 and 1, got {args.multilabel_threshold}')


def _check_validation_loader(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
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
            parser.error(f'{_flag(flag)} is for images, --naflex-loader gives patches: drop one of them')
    if args.naflex_max_seq_len < 1:
        parser.error(f'--naflex-max-seq-len must be 1 or more, got {args.naflex_max_seq_len}')
    for flag in ('crop_pct', 'crop_mode', 'crop_border_pixels'):
        if getattr(args, flag) is not None:
            _warn(parser, f'{_flag(flag)} has no effect with --naflex-loader, which shows whole images')


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


def _check_splits(args: argparse.Namespace, error: Callable) -> None:
    if args.aug_splits == 1 or args.aug_splits < 0:
        error(f'--aug-splits must be 0, or 2 and more, got {args.aug_splits}')
    if args.aug_splits and args.no_prefetcher:
        error('--aug-splits puts the splits into one batch in the prefetcher: drop --no-prefetcher')
    if args.aug_splits and args.cutout + args.lighting + (args.train_crop_mode == 'pad'):
        error('--aug-splits leaves its first split clean: drop it, or drop --cutout, --lighting, --train-crop-mode pad')
    if args.split_bn and not (args.aug_splits or args.resplit):
        error('--split-bn splits batch norm as the batch is split: add --aug-splits 2 or --resplit')
    if args.split_bn and args.sync_bn:
        error('--split-bn and --sync-bn are two batch norms: drop one of them')


def _check_resolutions(args: argparse.Namespace, error: Callable) -> None:
    sizes = args.train_img_sizes
    if sizes is None:
        return
    for flag in ('train_img_sizes', 'train_batch_sizes'):
        for value in getattr(args, flag) or ():
            if value < 1:
                error(f'{_flag(flag)} must be 1 or more each, got {value}')
    for flag in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(args, flag)
        if values is not None and len(values) != len(sizes):
            error(f'{_flag(flag)} needs a value for each of the {len(sizes)} --train-img-sizes, got {len(values)}')
    if args.train_size_probs is not None and (min(args.train_size_probs) < 0. or not sum(args.train_size_probs) > 0.):
        error(f"--train-size-probs must be 0 or more and not all 0, got {' '.join(map(str, args.train_size_probs))}")
    if args.train_size_schedule == 'progressive' and len(sizes) < 2:
        error('--train-size-schedule progressive goes from one size to another: give --train-img-sizes two or more')
    for flag, asked in (('--use-multi-epochs-loader', args.use_multi_epochs_loader),
                        ('--aug-splits', args.aug_splits),
                        ('--train-crop-mode pad', args.train_crop_mode == 'pad')):
        if asked:
            error(f'{flag} is for one size, --train-img-sizes gives several: drop one of them')
    if args.dataset.split('/')[0].lower() in ('hfids', 'tfds', 'wds'):
        error(f'--train-img-sizes needs data that can be indexed, got --dataset {args.dataset}: drop it, or use a '
              'folder, torch/ or hfds/')


def _check_naflex(args: argparse.Namespace, error: Callable) -> None:
    if not args.naflex_loader:
        return
    for flag, asked, reason in _NOT_WITH_NAFLEX:
        if asked(args):
            error(f'{flag} {reason}: drop it, or drop --naflex-loader')
    if args.dataset.split('/')[0].lower() in ('hfids', 'tfds', 'wds'):
        error(f'--naflex-loader needs data that can be indexed, got --dataset {args.dataset}: use a folder or hfds/')
    probs, sizes = args.naflex_patch_size_probs, args.naflex_patch_sizes
    if probs is not None and len(probs) != len(sizes or ()):
        error(f'--naflex-patch-size-probs needs a value for each of the {len(sizes or ())} --naflex-patch-sizes, got '
              f'{len(probs)}')


def _check_precision(args: argparse.Namespace, error: Callable) -> None:
    if args.amp and args.model_dtype not in (None, 'float32'):
        error(f'--amp keeps float32 weights, got --model-dtype {args.model_dtype}: drop one of them')


def _check_fuser(args: argparse.Namespace, error: Callable) -> None:
    if args.fuser not in ('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'):
        error(f"--fuser must be te, old or nvfuser, got '{args.fuser}'")


def _check_script(args: argparse.Namespace, error: Callable) -> None:
    _check_fuser(args, error)
    if not args.torchscript:
        return
    for flag, asked in (('--torchcompile', args.torchcompile), ('--sync-bn', args.sync_bn),
                        ('--kd-model-name', args.kd_model_name), ('--naflex-loader', args.naflex_loader),
                        ('--fsdp', args.fsdp)):
        if asked:
            error(f'--torchscript cannot be combined with {flag}: drop one of them')


def _check_distillation(args: argparse.Namespace, error: Callable) -> None:
    if not args.kd_model_name:
        return
    if args.kd_loss_type != 'kl':
        error(f"--kd-loss-type must be kl, got '{args.kd_loss_type}'")
    if args.task == 'multilabel':
        error('--kd-model-name distils one distribution over classes: drop it, or drop --task multilabel')
    if not args.kd_temperature > 0.:
        error(f'--kd-temperature must be above 0, got {args.kd_temperature}')


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


def _check_agmax(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    error = parser.error
    if not args.agmax:
        for name in _AGMAX_OPTIONS:
            if getattr(args, name) != parser.get_default(name):
                error(f'{_flag(name)} needs --agmax')
        return
    for flag, asked, reason, way_out in NOT_WITH_AGMAX:
        if asked(args):
            error(f'{flag} cannot be combined with --agmax: it {reason}. To go on, {way_out}')
    if args.agmax_loss != 'mi' and args.agmax_units is not None:
        error(f'--agmax-units is for --agmax-loss mi alone: {args.agmax_loss} has no Q-network')
    if args.agmax_units is not None and args.agmax_units < 1:
        error(f'--agmax-units must be 1 or more, got {args.agmax_units}')
    if args.agmax_init_std is not None:
        if not args.agmax_init_std > 0.:
            error(f'--agmax-init-std must be above 0, got {args.agmax_init_std}')
        if args.pretrained or args.initial_checkpoint:
            flag = '--pretrained' if args.pretrained else '--initial-checkpoint'
            error(f'--agmax-init-std draws new weights over those of {flag}: drop one of them')


def _check_hub(args: argparse.Namespace, error: Callable) -> None:
    if not args.push_to_hub:
        for name in ('hub_private', 'hub_revision', 'hub_pr'):
            if getattr(args, name):
                error(f'{_flag(name)} needs --push-to-hub OWNER/NAME')
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


def _warn_of_idle(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Name the options that change nothing; only the first process speaks, before there is a log."""
    idle = [f'{_flag(name)} has no effect without {_flag(needed)}' for needed, names in _ONLY_WITH
            if not getattr(args, needed) for name in names if getattr(args, name) != parser.get_default(name)]
    if args.drop_connect is not None:
        idle.append('--drop-connect has no effect, as in timm: use --drop-path')
    for line in idle:
        _warn(parser, line)


def _warn(parser: argparse.ArgumentParser, line: str) -> None:
    if os.environ.get('RANK', '0') == '0':
        print(f'{parser.prog}: warning: {line}', file=sys.stderr)


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')
