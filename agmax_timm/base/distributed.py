"""The rank of this process, its device in words, exchange of objects, and a differentiable mean over all ranks.

AgMax's marginals are not linear in the batch, so they must be taken over the samples of all ranks. The loss would
otherwise change with the number of ranks.
"""
from typing import Any

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether this process is part of a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes in the default group, 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the number of this process in the default group, 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def is_primary() -> bool:
    """Whether this is the first process, which logs and writes for all of them."""
    return rank() == 0


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks, by rank. Values can be pickled. All ranks must call it."""
    values = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


def largest(number: int, device: torch.device) -> int:
    """Return the largest of the numbers of all ranks. All ranks must call it, with a device of their process group."""
    if not is_distributed():
        return number
    of_all = torch.tensor(number, device=device)
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    return int(of_all)


def sum_of_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all ranks. All ranks must call it, with one shape."""
    total = value.clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def total_dtype(device: torch.device | str | None) -> torch.dtype:
    """Return the dtype of running totals on a device: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device is not None and torch.device(device).type == 'mps' else torch.float64


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the number of threads on a CPU; with several ranks, also their number."""
    threads = torch.get_num_threads()
    hardware = f'{threads} thread{"s" if threads > 1 else ""}'
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    ranks = f'{world_size()} ranks on ' if world_size() > 1 else ''
    return f'{ranks}{device.type}, {hardware}'


def global_mean(local_mean: torch.Tensor, count: int = 1, ranks: int | None = None) -> torch.Tensor:
    """Return the mean over the samples of all ranks, or of a group of ranks, from the mean of each rank.

    The value is the same on every rank of a group. Its gradient reaches only the samples of this rank. It is scaled so
    that DDP's average over the ranks equals the gradient of one process with all samples. There is one collective in
    the forward pass and none in the backward pass.

    Args:
        local_mean: Mean over the samples of this rank, with the same shape on all ranks.
        count: Number of samples of this rank. Ranks may have different numbers.
        ranks: Number of neighbouring ranks in a group, which divides the number of ranks. None is all ranks.

    Returns:
        Mean over the samples of the group, with the shape of local_mean. For one rank, local_mean itself.
    """
    ranks = ranks or world_size()
    if ranks == 1:
        return local_mean
    group = rank() // ranks
    own = torch.cat([local_mean.detach().flatten() * count, local_mean.new_full((1,), count)])
    sums = own.new_zeros(world_size() // ranks, len(own))  # a row for each group, to which the other groups add zeros
    sums[group] = own
    dist.all_reduce(sums)
    total = sums[group, -1]
    mean = (sums[group, :-1] / total).view_as(local_mean)
    share = local_mean * (count * ranks / total)
    return mean + (share - share.detach())


def rows_of_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the rows of all ranks [R * B, ...], by rank and without gradients. All ranks have one shape [B, ...]."""
    if not is_distributed():
        return value
    rows = value.new_empty(world_size() * len(value), *value.shape[1:])
    name = 'all_gather_single' if hasattr(dist, 'all_gather_single') else 'all_gather_into_tensor'  # before torch 2.14
    getattr(dist, name)(rows, value.contiguous())
    return rows
