"""Comparison of the options and data of a run with those of the checkpoint that it resumes."""
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ...base.command_line import flag_of
from ...base.errors import OptionError
from ...base.text import quoted
from ...data.sources.classes import class_names, normalised, same_names
from ...options.declare import declared
from ...options.derived import remembers, with_given_loss
from ...options.parsers import TrainOptions
from ...options.quantities import share_of
from ...weights.resume import OPTIMIZER_OPTIONS, differ


def compare_options(options: TrainOptions, saved: dict[str, Any], within_epoch: bool) -> tuple[list[str], bool]:
    """Return the options that differ from those of a checkpoint.

    Args:
        saved: Options in the checkpoint. An option that did not exist at that time has its default.
        within_epoch: Whether the checkpoint was written within an epoch.

    Returns:
        (changes, same_schedule): One line for each change, and whether the learning rate schedule is unchanged.

    Raises:
        OptionError: An option that must not change is different.
    """
    known = declared(TrainOptions)
    saved = {name: saved.get(name, option.default) for name, option in known.items()}
    saved = with_given_loss(saved)
    changes = {name: f'{_shown(getattr(options, name))} in place of {_shown(saved[name])}'
               for name, option in known.items()
               if option.resume != 'ignored' and differ(saved[name], getattr(options, name))}
    refused = {'refused'} if options.no_resume_opt else {'refused', 'refused with optimizer'}
    refused_by_memory = ('dataset', 'train_split') if remembers(options) else ()  # predictions are of numbered images
    sized_by_epochs = ('epochs',) if options.train_size_schedule == 'progressive' else ()
    for name, change in changes.items():
        rule = 'refused with optimizer' if name == 'weight_decay' and _regroups(options, saved) else known[name].resume
        if name == 'opt_kwargs' and _take_effect(options.opt_kwargs, saved[name] or {}):
            continue
        if rule in refused or name in refused_by_memory or (
                rule == 'refused as share' and share_of(options.val_split) is not None):
            remedy = ' or drop its optimizer with --no-resume-opt' if rule == 'refused with optimizer' else ''
            raise OptionError(f"--resume '{options.resume}' cannot continue with {flag_of(name)} {change}: "
                              f'keep the old value{remedy}, or start from the weights with --initial-checkpoint')
        if within_epoch and (rule == 'refused within epoch' or name in sized_by_epochs):
            raise OptionError(f"--resume '{options.resume}' is within an epoch, and its rest would change with "
                              f'{flag_of(name)} {change}: keep the old value, or use a checkpoint of a complete epoch')
    same_schedule = all(known[name].resume != 'schedule' for name in changes)
    return [f'{flag_of(name)} {change}' for name, change in changes.items()], same_schedule


def _take_effect(now: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether all changed arguments of an optimizer take effect on resume. Others come from the checkpoint."""
    return all(name in OPTIMIZER_OPTIONS for name in {*now, *saved} if now.get(name) != saved.get(name))


def _regroups(options: TrainOptions, saved: dict[str, Any]) -> bool:
    """Whether another weight decay changes the groups of parameters: timm has one group without any decay, else two."""
    one_group = options.layer_decay is None and options.opt_kwargs.get('filter_bias_and_bn', True)
    return bool(one_group) and bool(options.weight_decay) != bool(saved['weight_decay'])


def describe_data(train: Dataset, validation: Dataset | None) -> dict[str, Any]:
    """Return number of samples (None if read in sequence), class names and a hash of file names, for both splits.

    Names and hash are None if they are unknown.
    """
    def describe(dataset: Any) -> dict[str, Any] | None:
        if dataset is None:
            return None
        samples = None if isinstance(dataset, IterableDataset) else len(dataset)
        files = getattr(getattr(dataset, 'reader', None), 'fingerprint', None)
        return {'samples': samples, 'classes': class_names(dataset), 'files': files}
    return {'train': describe(train), 'validation': describe(validation)}


def compare_views(now: dict[str, Any], saved: dict[str, Any]) -> str:
    """Return one line if the views are made in another way than before, else ''. Memory and packages matter, too.

    Args:
        now, saved: Descriptions of the data with the words of views_of().
    """
    before = saved.get('views', now['views'])
    if before == now['views']:
        return ''
    return f"views are made {now['views']} in place of {before}, see --augment-backend and --image-memory"


def compare_data(options: TrainOptions, now: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Describe how the data changed since a checkpoint, one line for each change.

    Raises:
        OptionError: The classes changed, so the outputs of the model would have another meaning; or names of training
            files changed, and predictions are remembered.
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
            what = f'with {quoted(new, 4)}' if new else 'reordered'
            if gone:
                what = f'without {quoted(gone, 4)}'
            raise OptionError(f"--resume '{options.resume}': the classes of the {split} data changed since ({what}): "
                              'restore them, or start from the weights with --initial-checkpoint')
        if before.get('samples', description['samples']) != description['samples']:
            lines.append(f"{description['samples']} samples in the {split} data in place of {before['samples']}")
        elif description['files'] != (before.get('files') or description['files']):
            lines.append(f'other names of files in the {split} data')
            if split == 'train' and remembers(options):
                raise OptionError(f"--resume '{options.resume}': files of the train data have other names, so "
                                  'remembered predictions would be taken for those of other images: restore the files, '
                                  'or start from the weights with --initial-checkpoint')
    return lines


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
