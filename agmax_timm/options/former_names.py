"""Options that timm's train.py no longer has but published option files still hold, and their present names."""
from collections.abc import Callable
from typing import Any, NamedTuple

from ..base.command_line import flag_of
from .declare import declared
from .parsers import TrainOptions


class Former(NamedTuple):
    """A former option: its successor, and a function from its value to today's options ({} if there are none)."""
    today: str
    options: Callable[[Any], dict[str, Any]] = lambda value: {}


def _renamed(name: str) -> Former:
    return Former(flag_of(name), lambda value: {} if value is None else {name: value})


def _when_true(**options: Any) -> Former:
    return Former(', '.join(map(flag_of, options)), lambda value: options if value is True else {})


FORMER = {
    **{former: _renamed(name) for name, option in declared(TrainOptions).items() for former in option.former},
    'amp_impl': Former('--amp'),
    'apex_amp': _when_true(amp=True),
    'native_amp': _when_true(amp=True),
    'aot_autograd': Former('--torchcompile'),
    'dynamo': _when_true(torchcompile='inductor'),
    'dynamo_backend': Former('--torchcompile'),
    'bn_tf': _when_true(bn_momentum=0.01, bn_eps=0.001),
    'reduce_bn': _when_true(dist_bn='reduce'),
    'initial_batch_size': Former('--batch-size'),
    'validation_batch_size_multiplier': Former('--validation-batch-size'),
    'jsd': _when_true(jsd_loss=True),
    'mixup_elem': _when_true(mixup_mode='elem'),
    'repp': _when_true(remode='pixel'),
    'use_wandb': _when_true(log_wandb=True),
    # No equal values: distillation had another temperature.
    'alpha_kd': Former('--distill-loss-weight'),
    'use_kd_only_loss': Former('--task-loss-weight 0'),
    # These were never options. Files that people dumped from the namespace of a run hold them.
    'prefetcher': Former('--no-prefetcher', lambda value: {'no_prefetcher': True} if value is False else {}),
    **dict.fromkeys(('num_gpu', 'distributed', 'world_size', 'rank'), Former('torchrun --nproc-per-node')),
}


def with_todays_names(config: dict[Any, Any], warn: Callable[[str], Any]) -> dict[Any, Any]:
    """Replace former options by those of today. Options that the file gives under today's names win.

    Args:
        warn: Function that is called with one line for each former option.
    """
    names = {key: str(key).replace('-', '_') for key in config}
    former = {key: FORMER[name] for key, name in names.items() if name in FORMER}
    today = {key: value for key, value in config.items() if key not in former}
    taken = {names[key] for key in today}
    for key, option in former.items():
        options = {name: value for name, value in option.options(config[key]).items() if name not in taken}
        today.update(options)
        if options:
            meant = ', '.join(f'{name}: {value!r}' for name, value in options.items())
            warn(f"'{key}' is a former option of timm, read as {meant}")
        else:
            warn(f"'{key}' is a former option of timm, {config[key]!r} has no effect: today it is {option.today}")
    return today
