"""Resuming from a checkpoint: its content, the changes since, and where training starts."""
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from ...base.command_line import flag_of
from ...base.distributed import is_primary
from ...base.errors import OptionError
from ...base.safe_load import read_file
from ...options.parsers import TrainOptions
from ...options.quantities import share_of
from ...weights.checkpoint import STATE, metadata_in, options_in
from ...weights.find import position_of
from .compatibility import compare_data, compare_options, compare_views
from .state import History, Position, RunState

_logger = logging.getLogger('train')


@dataclass
class ResumedRun:
    """The run that wrote a checkpoint: what the checkpoint stores about it."""
    state: dict[str, Any] = field(default_factory=dict)  # empty for timm's script, early versions, and a new run
    epoch: int | None = None  # that continues; None for a new run, and if the file does not store it
    same_schedule: bool = False
    exact: bool = False  # whether the state is restored

    @classmethod
    def read(cls, options: TrainOptions, data: dict[str, Any]) -> 'ResumedRun':
        """Read a checkpoint, and compare it with the options and data.

        Raises:
            OptionError: An option or data that must not change is different.
            CheckpointError: The file cannot be read.
        """
        checkpoint = read_file(options.resume, mmap=True)
        state = checkpoint.get(STATE) or {}
        position = Position(**state['position']) if state else Position()
        found = position_of(checkpoint)
        epoch = found[0] if found else None
        # After training of an epoch only its evaluation is left, which does not depend on the training samples.
        again = options.start_epoch is not None or options.no_resume_opt  # from the start of an epoch
        within = bool(position.batch) and not position.trained and not again
        changed, same_schedule = ([], False) if checkpoint.get('args') is None else compare_options(
            options, options_in(checkpoint), within)
        of_data = compare_data(options, data, state['data'] if state else _saved_data(checkpoint))
        if within and of_data:
            raise OptionError(f"--resume '{options.resume}' is within an epoch, and there are {of_data[0]}: restore "
                              'the data, or use a checkpoint of a complete epoch')
        obstacles = {
            '--start-epoch': options.start_epoch is not None,
            f"'{options.resume}' holds no random state": not state,
            '--no-resume-opt': options.no_resume_opt,
        }
        obstacle = next((reason for reason, holds in obstacles.items() if holds), '')
        if is_primary():
            for reason in filter(None, (obstacle, compare_views(data, state['data']) if state else '')):
                _logger.warning(f'{reason}: the run continues, but differs from an uninterrupted run.')
            if 'metric' not in checkpoint and epoch is not None and options.start_epoch is None and (
                    not state or options.no_resume_opt):
                _logger.warning(f"'{options.resume}' was written within epoch {epoch}, which is trained again from its "
                                'start.')
            if changed or of_data:
                _logger.info(f"Not as in the checkpoint: {', '.join(changed + of_data)}")
        return cls(state, epoch, same_schedule, exact=not obstacle)

    def shift(self, position: Position, grad_accum_steps: int, done_updates: int) -> int:
        """Return the correction of the step axis: the updates really made before a position, minus `done_updates`.

        Args:
            position: Where training starts.
            done_updates: Number of updates before the position if all epochs had the present length.
        """
        steps = self.state.get('steps')  # checkpoints of earlier versions have none
        if steps is None:
            return 0
        saved = Position(**self.state['position']) if self.exact else position
        return steps['shift'] + saved.updates(steps['updates_per_epoch'], grad_accum_steps) - done_updates

    def keep_history(self, state: RunState, position: Position) -> None:
        """Keep the results of earlier epochs, for a run that starts at another position than the checkpoint."""
        state.history = History(*([row for row in self.state[name] if row['epoch'] < position.epoch]
                                  for name in ('rows', 'results')))


def _saved_data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the data from the metadata of a checkpoint without a state."""
    names = metadata_in(checkpoint).get('class_names')
    return {'train': {'classes': names}} if names else {}


def keep_defaults(options: TrainOptions) -> TrainOptions:
    """Return options with two values of the run that is resumed, unless the user gave them.

    These are the label smoothing of AgMax, because earlier versions had timm's default of 0.1, and the seed of the
    share that --val-split holds out, because another --seed must not move validation images into training.
    """
    names = {'smoothing': options.agmax, 'val_split_seed': share_of(options.val_split) is not None}
    wanted = [name for name, used in names.items() if used and name not in options.given] if options.resume else []
    saved = options_in(read_file(options.resume, mmap=True)) if wanted else {}
    kept = {name: saved[name] for name in wanted if saved.get(name) not in (None, getattr(options, name))}
    for name, value in kept.items():
        _logger.info(f"{flag_of(name)} {value}, as in '{options.resume}'")
    return replace(options, **kept)
