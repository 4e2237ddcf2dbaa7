"""Updates whose losses or gradients are NaN or infinite: stop or leave them out, and write their batches to files."""
import logging
import os
from typing import Any

from timm.utils import unwrap_model

from ...base.background import snapshot, write_file
from ...base.distributed import gather_objects, is_distributed, rank
from ...base.text import listed
from ...data.resumption.loader import ResumableLoader
from ..updates.finite_check import GRADIENT, CheckResult
from ..updates.losses import NonFiniteError, Update
from ..updates.step import Training

_logger = logging.getLogger('train')
_MOST_FILES = 10
_MOST_IN_A_ROW = 50
_REMEDY = 'a smaller --lr, --clip-grad, more --warmup-epochs, --amp-dtype bfloat16'


class BrokenUpdates:
    """Ends the run at the first broken update, or leaves such updates out, as --nan-policy says.

    Updates that the loss scaler skips do not end the run, because its scale starts high and decreases. Too many in a
    row end it.

    Args:
        loader: Training loader, which knows the indices of a batch.
    """

    def __init__(self, training: Training, loader: ResumableLoader):
        self.options = training.options
        self.task = training.task
        self.loader = loader
        self.folder = ''  # folder of the files, on every rank; '': no files
        self.count = 0
        self.skipped = 0  # by the loss scaler
        self._next = -1  # number of the batch after the last broken update, counted over all epochs
        self._in_a_row = 0

    def __call__(self, update: Update, checked: CheckResult) -> None:
        """
        Raises:
            NonFiniteError: On all ranks, at the first one, or with --nan-policy skip after 50 in a row; for updates
                that the loss scaler skips, after 50 in a row or at a scale below 1.
        """
        first_batch = update.epoch * len(self.loader.loader) + update.first_batch
        self._in_a_row = self._in_a_row + 1 if first_batch == self._next else 1
        self._next = first_batch + len(update.losses)
        if checked.skipped:
            self._skipped(update, checked)
            return
        found = self._found(update, checked)
        self.count += 1
        message = f"{self._name(update)}: {', '.join(checked.broken)} not finite, {found}"
        if checked.late:
            raise NonFiniteError(f'{message}. It was found after the update was made, and nothing was saved since. Try '
                                 f'{_REMEDY}')
        if self.options.nan_policy == 'stop':
            raise NonFiniteError(f'{message}. The update was not made, and nothing was saved of it. Try {_REMEDY} or '
                                 '--nan-policy skip')
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise NonFiniteError(f'{message}: the last of {self._in_a_row} updates in a row. Try a smaller --lr')
        if rank() == 0:
            _logger.warning(f'Left out: {message}')

    def _skipped(self, update: Update, checked: CheckResult) -> None:
        self.skipped += 1
        if checked.scale < 1 or self._in_a_row >= _MOST_IN_A_ROW:
            raise NonFiniteError(
                f'{self._name(update)}: gradient not finite, {self._found(update, checked)}. The loss scaler skipped '
                f'{self._in_a_row} updates in a row, its scale is {checked.scale:g}. Try {_REMEDY}')
        _logger.info(f'Skipped {self._name(update)}: a gradient is not finite in float16. The loss scale is now '
                     f'{checked.scale:g}; skipped so far: {self.skipped}')

    def _name(self, update: Update) -> str:
        return f'update {update.first_batch // self.options.grad_accum_steps} of epoch {update.epoch}'

    def _found(self, update: Update, checked: CheckResult) -> str:
        """Return the samples and files of the broken update on all ranks, in words. A collective."""
        return '; '.join(filter(None, gather_objects(self._describe(update, checked))))

    def _describe(self, update: Update, checked: CheckResult) -> str:
        """Return the samples of this rank and the file with its batch, '' if this rank is not broken."""
        if not checked.here and not checked.skipped:
            return ''
        indices = [self.loader.indices(update.first_batch + i) for i in range(len(update.losses))]
        known = [index for batch in indices if batch for index in batch]
        # With scheduled resolutions an index comes with the size of its image.
        known = [index[0] if isinstance(index, tuple) else index for index in known]
        words = f'samples {listed(known)}' if known else 'samples of unknown index'
        if self.folder and self.count < _MOST_FILES and update.input is not None:
            words += f', kept in {self._write(update, checked, indices)}'
        return f'on rank {rank()} {words}' if is_distributed() else words

    def _write(self, update: Update, checked: CheckResult, indices: list[Any]) -> str:
        """Write a file that reproduces the losses: by a forward pass of `weights` in training mode. Return its path."""
        number = update.first_batch // self.options.grad_accum_steps
        path = os.path.join(self.folder, f'broken-{update.epoch}-{number}-rank{rank()}.pth')
        content = snapshot({
            'epoch': update.epoch, 'update': number, 'rank': rank(), 'broken': checked.here or [GRADIENT],
            'losses': [dict(zip(losses.names, losses.values.tolist())) for losses in update.losses],
            'indices': indices, 'input': update.input, 'target': update.target,
            'weights': {} if self.options.fsdp else unwrap_model(self.task.get_trainable_module()).state_dict(),
            'model': self.options.model, 'num_classes': self.options.num_classes,
        })
        try:
            write_file(content, path)
        except OSError as error:
            return f'nothing, {error}'
        return path
