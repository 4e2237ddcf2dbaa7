"""The place of this process in the job, and a mean over the whole job that gradients flow through.

AgMax's marginals are not linear in the batch, so they must be taken over the samples of all ranks. The loss would
otherwise change with the number of ranks.
"""
import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether this process is part of a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes in the default group, 1 where none was initialised."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Number of this process in the default group, 0 where none was initialised."""
    return dist.get_rank() if is_distributed() else 0


def is_primary() -> bool:
    """Whether this is the first process, which logs and writes for all of them."""
    return rank() == 0


def global_mean(local_mean: torch.Tensor, count: int = 1) -> torch.Tensor:
    """Mean over the samples of all ranks, from each rank's mean over its own.

    The value is the same on every rank. Its gradient reaches this rank's samples alone, scaled so that DDP's average
    over ranks equals the gradient of one process that holds all samples: one collective forward, none backward.

    Args:
        local_mean: Mean over this rank's samples, any shape, the same on all ranks.
        count: Number of samples it was taken over; ranks may differ.

    Returns:
        Mean over the samples of all ranks, shaped as local_mean; local_mean itself without a process group.
    """
    ranks = world_size()
    if ranks == 1:
        return local_mean
    sums = local_mean.detach().flatten() * count
    packed = torch.cat([sums, torch.full_like(sums[:1], count)])
    dist.all_reduce(packed)
    total = packed[-1]
    mean = (packed[:-1] / total).view_as(local_mean)
    share = local_mean * (count * ranks / total)
    return mean + (share - share.detach())
