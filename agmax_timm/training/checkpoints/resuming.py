"""Resuming from a checkpoint: its content, the changes since, and where training starts."""
import logging
from dataclasses import dataclass
from typing import Any

from ...base.distributed import is_primary
from ...base.errors import OptionError
from ...base.safe_load import read_file
from ...options.optimization import Schedule
from ...options.parsers import TrainOptions
from ...weights.checkpoint import METADATA, STATE, options_in
from ..updates.losses import RunningLosses
from .compatibility import compare_data, compare_options, compare_views
from .state import History, Position, RunState

_logger = logging.getLogger('train')


@dataclass
class ResumedRun:
    """The run that wrote a checkpoint: what the checkpoint stores about it."""
    state: dict[str, Any] | None  # None for checkpoints of timm's script and of early versions
    same_schedule: bool
    exact: bool  # whether the state is restored

    @classmethod
    def read(cls, options: TrainOptions, data: dict[str, Any]) -> 'ResumedRun':
        """Read a checkpoint, and compare it with the options and data.

        Raises:
            OptionError: An option or data that must not change is different.
            CheckpointError: The file cannot be read.
        """
        checkpoint = read_file(options.resume, mmap=True)
        state = checkpoint.get(STATE)
        saved = checkpoint.get('args')
        position = Position(**state['position']) if state else Position()
        # After training of an epoch only its evaluation is left, which does not depend on the training samples.
        within = bool(position.batch) and not position.trained and options.start_epoch is None
        changed: list[str] = []
        same_schedule = False
        if saved is not None:
            changed, same_schedule = compare_options(options, options_in(checkpoint), within)
        of_data = compare_data(options, data, state['data'] if state else _saved_data(checkpoint))
        if within and of_data:
            raise OptionError(f'--resume {options.resume} is within an epoch, and there are {of_data[0]}: restore the '
                              'data, or use a checkpoint of a whole epoch')
        exact = state is not None and options.start_epoch is None and not options.no_resume_opt
        if not exact and is_primary():
            reason = ('--start-epoch' if options.start_epoch is not None else '--no-resume-opt' if state is not None
                      else f'{options.resume} holds no random state')
            _logger.warning(
                f'{reason}: the run continues, but is not the one that an uninterrupted run would have been.')
        other_views = compare_views(data, state['data']) if state else ''
        if other_views and is_primary():
            _logger.warning(f'{other_views}: the run continues, but is not the one that it would have been.')
        if (changed or of_data) and is_primary():
            _logger.info(f"Not as in the checkpoint: {', '.join(changed + of_data)}")
        return cls(state, same_schedule, exact)

    def restore(self, state: RunState, primary: bool) -> tuple[Position, RunningLosses | None]:
        """Restore the whole state. Call it after all objects are created."""
        assert self.state is not None
        found = state.load_state_dict(self.state, self.same_schedule)
        if found['changed'] and primary:
            _logger.warning(f"Continuing with {', '.join(found['changed'])}: no sample of the epoch is repeated or "
                            'left out, but the run is not the one that an uninterrupted run would have been.')
        if found['left_out'] and primary:
            _logger.warning(f"The checkpoint has random states of another kind of device for "
                            f"{' and '.join(found['left_out'])}, which are left out: the run continues, but is not the "
                            'one that an uninterrupted run would have been.')
        return found['position'], found['losses']

    def keep_history(self, state: RunState, position: Position) -> None:
        """Keep the results of earlier epochs, for a run that starts at another position than the checkpoint."""
        assert self.state is not None
        state.history = History(*([row for row in self.state[name] if row['epoch'] < position.epoch]
                                  for name in ('rows', 'results')))


def _saved_data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the data from the metadata of a checkpoint without a state."""
    metadata = checkpoint.get(METADATA)
    names = metadata.get('class_names') if isinstance(metadata, dict) else None
    return {'train': {'classes': names}} if names else {}


def find_start(options: Schedule, resumed: ResumedRun | None, resume_epoch: int | None) -> Position:
    """Return where training starts: at --start-epoch, at the saved position, or at the epoch of the checkpoint."""
    if options.start_epoch is not None:
        return Position(options.start_epoch)
    if resumed is not None and resumed.exact and resumed.state is not None:
        return Position(**resumed.state['position'])
    return Position(resume_epoch or 0)
