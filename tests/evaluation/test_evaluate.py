"""One evaluation on several ranks."""
from argparse import Namespace

import pytest
import timm
import torch
import torch.distributed as dist
from timm.task import ClassificationTask

from agmax_timm.assembly.model import Precision
from agmax_timm.base.distributed import largest
from agmax_timm.evaluation.evaluate import evaluate
from tests.helpers.ranks import finish_ranks, logs, no_environment, start_ranks

CPU = torch.device('cpu')
OPTIONS = Namespace(no_prefetcher=False, channels_last=False)
UNEQUAL = ((1, 2), (2, 0))  # batches of each rank


def model_of(rank, distributed=False):
    """A model whose statistics of batch norm differ between ranks, as they do with --dist-bn ''."""
    torch.manual_seed(0)
    task = ClassificationTask(timm.create_model('test_resnet', num_classes=3), verbose=False)
    if distributed:
        task.prepare_distributed()
    for name, buffer in task.get_trainable_module().named_buffers():
        if name.endswith('running_mean'):
            buffer.fill_(0.1 * rank)
    return task.get_eval_model()


def batches_of(rank, numbers):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(4, 3, 32, 32, generator=generator), torch.randint(3, (4,), generator=generator))
            for _ in range(numbers[rank])]


def loss_of(model, batches, **kwargs):
    return evaluate(model, batches, OPTIONS, CPU, Precision(), 1, **kwargs)['loss']


def evaluate_share(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    losses = [loss_of(model_of(rank, distributed=True), batches_of(rank, numbers),
                      before_compute=lambda: largest(0, CPU)) for numbers in UNEQUAL]
    torch.save(losses, f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_evaluate_unequal_numbers_of_batches_each_with_its_own_statistics(tmp_path):
    """A rank does not wait for the forward passes of another one. The loss is the mean over all images."""
    ranks = start_ranks(2, tmp_path / 'logs', evaluate_share, int, tmp_path, environment=no_environment)
    assert finish_ranks(ranks, 60) == [0, 0], logs(tmp_path / 'logs')
    for number, counts in enumerate(UNEQUAL):
        losses = [loss_of(model_of(rank), [batch]) for rank in range(2)
                  for batch in batches_of(rank, counts)]
        for rank in range(2):
            assert torch.load(tmp_path / f'{rank}.pt')[number] == pytest.approx(sum(losses) / len(losses))
