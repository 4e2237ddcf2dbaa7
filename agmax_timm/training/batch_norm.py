"""Batch norm statistics that ranks share at the end of an epoch."""
from typing import Any

from timm import utils

from ..assembly.freezing import frozen_batch_norm
from ..base.distributed import is_distributed, world_size
from ..options.model import BatchNorm


def distribute_batch_norm(options: BatchNorm, model: Any) -> None:
    """Share the batch norm statistics between ranks, as --dist-bn says. Those of frozen layers stay.

    With --sync-bn they are computed over all ranks already.
    """
    if is_distributed() and options.dist_bn and not options.sync_bn:
        frozen = [buffer for layer in frozen_batch_norm(model) for buffer in layer.buffers()]
        before = [buffer.clone() for buffer in frozen]
        utils.distribute_bn(model, world_size(), options.dist_bn == 'reduce')
        for buffer, value in zip(frozen, before):
            buffer.copy_(value)  # the mean of equal values can differ from them by a rounding
