"""Checks of options of train.py that exclude each other. Each yields one line with both flags and the remedy."""
from collections.abc import Iterator

from ..base.command_line import flag_of
from .agmax import AgMax, RememberedPredictions
from .data_kinds import in_sequence, needs_classes, needs_index
from .declare import declared, has_effect, refused
from .derived import mixing, remembers
from .model import TrainModel
from .parsers import TrainOptions
from .without_effect import flag_with_values

# What cannot be combined with --agmax: a condition (see has_effect), the reason and the remedy. Declarations have no
# reasons and remedies.
NOT_WITH_AGMAX = (
    ('aug_splits', 'makes versions of one crop, the first without augmentation; AgMax augments both views',
     'use --aa for both views'),
    ('jsd_loss', 'compares the splits of --aug-splits as AgMax compares its views',
     'use --agmax-loss kl or drop one of them'),
    ('split_bn', 'keeps separate statistics for the split without augmentation; both views are augmented', 'drop it'),
    ('resplit', 'erases in half of a batch, which is one view', 'drop it'),
    ('no_aug', 'makes both views of an image the same',
     'drop it, or mix the views in all epochs by --mixup or --cutmix'),
    ('task multilabel', 'has no distribution over classes, so there are no marginals', 'drop one of them'),
    ('kd_distill_type feature', 'trains on features, AgMax on logits alone', 'use --kd-distill-type logit'),
    ('kd_distill_type token', 'trains two heads, AgMax pairs the logits of one', 'use --kd-distill-type logit'),
    ('torchscript', 'hides the head and the number of classes from AgMax', 'use --torchcompile'),
)

# The same of other options: what each condition cannot be combined with, and why. The remedy is to drop either.
NOT_WITH: dict[str, dict[str, str]] = {
    'naflex_loader': {
        'train_img_sizes': 'is another way to vary the size',
        'use_multi_epochs_loader': 'is another loader',
        'aug_splits': 'has a loader of its own',
        'aug_repeats': 'has a sampler of its own',
        'balanced_sampling': 'has a sampler of its own',
        'cutmix_minmax': 'is for images of one size, unlike --cutmix',
        'mixup_mode pair': 'is for images of one size',
        'mixup_mode elem': 'is for images of one size',
        'kd_model_name': 'gives the teacher images, not patches',
        'cutout': 'cuts images, not patches as --reprob does',
        'lighting': 'is for images of one size',
        'augment_backend fast': 'is for images of one size',
        'train_crop_mode pad': 'is for images of one size',
        'agmax_marginal_images': 'is for batches of equal numbers of images',
    },
    'agmax_teacher memory': {
        'agmax': 'compares two views, and remembered predictions replace the second one',
        'aug_splits': 'has several versions of an image in a batch',
        'task multilabel': 'has no distribution over classes',
        'kd_model_name': 'is another teacher',
        'naflex_loader': 'is a loader that does not give the indices of images',
        'fsdp': 'shards what is trained, and each process needs the whole memory',
    },
    'aug_splits': {
        'no_prefetcher': 'removes the prefetcher, which puts the splits into one batch',
        **dict.fromkeys(('cutout', 'lighting', 'train_crop_mode pad'), 'augments the first split too'),
    },
    'train_img_sizes': dict.fromkeys(
        ('use_multi_epochs_loader', 'aug_splits', 'train_crop_mode pad'), 'is for one size'),
    'torchscript': dict.fromkeys(('sync_bn', 'kd_model_name', 'naflex_loader', 'fsdp'), 'needs a model in Python'),
    'fsdp': {
        'kd_model_name': 'adds a teacher, which is not sharded',
        'clip_mode agc': 'clips by the norms of whole weights, unlike norm and value',
        'model_ema_force_cpu': 'keeps a whole EMA on every rank, not a shard',
    },
    'sync_bn': {'split_bn': 'is another batch norm'},
    'balanced_sampling': {'aug_repeats': 'is another sampler'},
}

# Arguments of a model in timm that have a flag, so --model-kwargs cannot name them as well. Declarations do not have
# timm's names of arguments.
_MODEL_ARGUMENTS = dict(
    model_name='--model', pretrained='--pretrained', in_chans='--in-chans', num_classes='--num-classes',
    drop_rate='--drop', drop_path_rate='--drop-path', drop_block_rate='--drop-block', global_pool='--gp',
    bn_momentum='--bn-momentum', bn_eps='--bn-eps', scriptable='--torchscript', checkpoint_path='--initial-checkpoint',
    pretrained_cfg_overlay='--pretrained-cfg-overlay')


def check_combinations(options: TrainOptions) -> Iterator[str]:
    """Yield a line for each pair of options that exclude each other. The first one counts."""
    for check in (_check_exclusive, _check_pairs, _check_splits, _check_resolutions, _check_naflex, _check_loader,
                  _check_arguments, _check_agmax, _check_memory, _check_fsdp):
        yield from check(options)


def _check_exclusive(options: TrainOptions) -> Iterator[str]:
    """Yield a line for options of which only one can be given. The parser checks only the command line."""
    given: dict[str, str] = {}  # flag by set of options
    for name, option in declared(type(options)).items():
        if option.exclusive and getattr(options, name):
            if option.exclusive in given:
                yield f'{given[option.exclusive]} cannot be combined with {option.flag}: drop one of them'
            given[option.exclusive] = option.flag


def _check_pairs(options: TrainOptions) -> Iterator[str]:
    for condition, others in NOT_WITH.items():
        for other, reason in others.items():
            if has_effect(options, condition) and has_effect(options, other):
                yield (f'{flag_with_values(other)} cannot be combined with {flag_with_values(condition)}: it {reason}. '
                       'Drop one of them')


def _check_splits(options: TrainOptions) -> Iterator[str]:
    if options.aug_splits:
        yield from needs_index(options, '--aug-splits')
    if options.split_bn and not (options.aug_splits or options.resplit):
        yield '--split-bn splits batch norm as the batch is split: add --aug-splits 2 or --resplit'


def _check_resolutions(options: TrainOptions) -> Iterator[str]:
    sizes = options.train_img_sizes
    if sizes is None:
        return
    for flag in ('train_batch_sizes', 'train_size_probs'):
        values = getattr(options, flag)
        if values is not None and len(values) != len(sizes):
            yield f'{flag_of(flag)} needs a value for each of the {len(sizes)} --train-img-sizes, got {len(values)}'
    if options.train_size_probs is not None and not sum(options.train_size_probs) > 0.:
        yield '--train-size-probs must not all be 0'
    if options.train_size_schedule == 'progressive' and len(sizes) < 2:
        yield '--train-size-schedule progressive goes from one size to another: give --train-img-sizes two or more'
    yield from needs_index(options, '--train-img-sizes')


def _check_naflex(options: TrainOptions) -> Iterator[str]:
    if not options.naflex_loader:
        return
    yield from needs_index(options, '--naflex-loader')
    probs, sizes = options.naflex_patch_size_probs, options.naflex_patch_sizes
    if probs is not None and len(probs) != len(sizes or ()):
        yield (f'--naflex-patch-size-probs needs a value for each of the {len(sizes or ())} --naflex-patch-sizes, got '
               f'{len(probs)}')
    if probs is not None and not sum(probs) > 0.:
        yield '--naflex-patch-size-probs must not all be 0'


def _check_loader(options: TrainOptions) -> Iterator[str]:
    if options.balanced_sampling:
        yield from needs_classes(options, '--balanced-sampling')
    if options.use_multi_epochs_loader and options.mixup_off_epoch and options.workers and mixing(options):
        yield (f'--mixup-off-epoch {options.mixup_off_epoch} comes too late for batches that --use-multi-epochs-loader '
               'made ahead: drop one of them, or use -j 0')


def _check_arguments(options: TrainModel) -> Iterator[str]:
    """Yield a line for further arguments of the model that flags stand for."""
    for name, flag in _MODEL_ARGUMENTS.items():
        if name in options.model_kwargs:
            yield f'--model-kwargs {name} has a flag of its own: use {flag}'
    for other in ('pretrained', 'initial_checkpoint', 'freeze', 'linear_probe'):
        if options.init_std is not None and getattr(options, other):
            yield f'--init-std draws new weights over those of {flag_of(other)}: drop one of them'
    if options.pretrained_path and {'file', 'num_classes'} & set(options.pretrained_cfg_overlay):
        yield '--pretrained-cfg-overlay cannot set file and num_classes with --pretrained-path: drop them'


def _check_agmax(options: TrainOptions) -> Iterator[str]:
    if not options.agmax:
        for name, option in declared(AgMax).items():
            if getattr(options, name) != option.default:
                yield f'{flag_of(name)} needs --agmax'
        return
    for other, reason, remedy in NOT_WITH_AGMAX:
        mixed = other == 'no_aug' and mixing(options) and not options.mixup_off_epoch
        if has_effect(options, other) and not mixed:
            yield f'{flag_with_values(other)} cannot be combined with --agmax: it {reason}. To continue, {remedy}'
    for option in refused(options, AgMax):
        yield (f'{option.flag} is for --agmax-loss mi alone: {options.agmax_loss} has no Q-network, marginals or '
               'divergence')


def _check_memory(options: TrainOptions) -> Iterator[str]:
    if not remembers(options):
        for option in refused(options, RememberedPredictions):
            yield f'{option.flag} needs --agmax-teacher memory'
        return
    yield from needs_index(options, '--agmax-teacher memory')


def _check_fsdp(options: TrainOptions) -> Iterator[str]:
    if not options.fsdp:
        return
    if options.val_split and in_sequence(options):
        yield (f"--dataset '{options.dataset}' may give ranks unequal numbers of batches in validation, and with "
               "--fsdp they compute each batch together: use hfds/ or a folder, or --val-split ''")
    if options.model_ema and options.model_dtype == 'bfloat16':
        yield ('--model-ema rounds bfloat16 weights at random, and --fsdp keeps shards: use --amp --amp-dtype bfloat16 '
               'in place of --model-dtype bfloat16')
