"""Log of images that cannot be decoded: a warning for each, a list at the end of the run, and damaged.csv."""
import logging
import os

import torch

from ...base.output_files import write_csv
from ...data.sources.damage import Damage
from ...data.sources.decoding import why_undecodable
from ..output.log import tolerated

_logger = logging.getLogger('train')
MOST_LINES = 10


class DamageLog:
    """Logs the damaged samples of the training data.

    Args:
        damage: Record of the training data, see damage_of(). If it is None, nothing is logged.
        device: Device that the ranks' collectives work on.
        output_dir: Folder for damaged.csv; '' on ranks that do not log.
    """

    def __init__(self, damage: Damage | None, device: torch.device, output_dir: str = ''):
        self.damage = damage
        self.device = device
        self.path = os.path.join(output_dir, 'damaged.csv') if output_dir else ''
        self.reasons: dict[int, str] = {}

    def after_epoch(self) -> None:
        """Warn of new damaged samples of all ranks. Every rank must call it.

        Raises:
            DamagedError: More than --max-damaged, on every rank.
        """
        if self.damage is None:
            return
        too_many = self.damage.gather(self.device)
        self.log_new()
        if too_many:
            self.damage.check()

    def log_new(self) -> None:
        """Warn of new damaged samples, and write damaged.csv. Does not wait for other ranks."""
        if self.damage is None:
            return
        new = self.damage.take_new()
        if new and self.path:
            self.reasons.update((index, why_undecodable(self.damage.reader, index)) for index in new)
            self._warn(self.damage, new, f'{len(new)} more training images cannot be decoded, others took their place')
            with tolerated(self.path):
                write_csv(self.path, [{'path': self.damage.path(index), 'reason': self.reasons[index]}
                                      for index in sorted(self.reasons)])

    def at_end(self) -> None:
        """List all damaged samples in the last lines of the log."""
        if self.damage is not None and self.reasons:
            self._warn(self.damage, sorted(self.reasons),
                       f'{len(self.reasons)} of {len(self.damage.flags)} training images could not be decoded, see '
                       f"'{self.path}'")

    def _warn(self, damage: Damage, indices: list[int], title: str) -> None:
        lines = [f'  {damage.path(index)}: {self.reasons[index]}' for index in indices[:MOST_LINES]]
        if len(indices) > MOST_LINES:
            lines.append(f'  and {len(indices) - MOST_LINES} more')
        _logger.warning('\n'.join([f'{title}:', *lines]))
