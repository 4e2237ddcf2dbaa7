"""torch and torchvision: what their documentation does not promise."""
import errno
import inspect
import os
import pickle
import re
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.distributed import distributed_c10d
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, get_worker_info
from torchvision import transforms

import agmax_timm
from agmax_timm.base.errors import MemoryLimitError, as_user_error
from agmax_timm.training.guards.watchdog import _WAITING


class Numbers(Dataset):
    """0 to 3; a worker that is asked for `deadly` dies."""

    def __init__(self, deadly=None):
        self.deadly = deadly
        self.asked = []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.deadly and get_worker_info() is not None:
            os._exit(1)
        return index


class InBatches(Numbers):
    def __getitems__(self, indices):
        self.asked.append(indices)
        return [10 * index for index in indices]


def test_the_batch_sampler_of_a_loader_can_be_replaced():
    """--resume within an epoch: wrap_order() in data/resumption/order.py sets DataLoader.batch_sampler by
    object.__setattr__, since DataLoader refuses it."""
    loader = DataLoader(Numbers(), batch_sampler=BatchSampler(SequentialSampler(range(4)), 2, drop_last=False))
    with pytest.raises(ValueError, match='batch_sampler'):
        loader.batch_sampler = [[3]]
    object.__setattr__(loader, 'batch_sampler', [[3], [1, 0]])
    assert len(loader) == 2
    assert [batch.tolist() for batch in loader] == [[3], [1, 0]]


def test_the_sampler_of_a_loader_can_be_replaced():
    """--balanced-sampling: use_sampler() in data/loading/balance.py sets DataLoader.sampler by object.__setattr__, as
    DataLoader refuses it. Only set_epoch() reads it: the samples come from the batch sampler."""
    loader = DataLoader(Numbers(), 2)
    with pytest.raises(ValueError, match='sampler'):
        loader.sampler = SequentialSampler(range(2))
    sampler = SequentialSampler(range(2))
    object.__setattr__(loader, 'sampler', sampler)
    assert loader.sampler is sampler
    loader.batch_sampler.sampler = sampler
    assert [batch.tolist() for batch in loader] == [[0, 1]]


def test_the_stack_of_the_main_thread_is_known():
    """The message of --hang-timeout: Watchdog in training/guards/watchdog.py takes the stack of the main thread from
    sys._current_frames()."""
    with ThreadPoolExecutor(1) as pool:
        stack = pool.submit(lambda: traceback.extract_stack(sys._current_frames()[threading.main_thread().ident]))
        names = [frame.name for frame in stack.result()]
    assert 'test_the_stack_of_the_main_thread_is_known' in names


def test_persistent_workers_have_one_iterator():
    """--resume between two epochs with persistent workers: Iterators in data/resumption/iterators.py looks at
    DataLoader._iterator for whether the workers have started."""
    loader = DataLoader(Numbers(), 2, num_workers=1, persistent_workers=True, multiprocessing_context='fork')
    assert loader._iterator is None
    first = iter(loader)
    assert loader._iterator is first
    assert iter(loader) is first
    first._shutdown_workers()


def test_empty_batches_reach_the_collate_function():
    """--resume within an epoch: data/resumption/order.py gives no indices for batches that were trained, and
    CollateWithState in data/loading/workers.py leaves them out."""
    for dataset in Numbers(), InBatches():
        loader = DataLoader(dataset, batch_sampler=[[], [2]], collate_fn=list)
        assert list(loader) in ([[], [2]], [[], [20]])


def test_a_data_set_gets_the_indices_of_a_batch_at_once():
    """Small images in memory, by batches: DecodedDataset.__getitems__ in data/sources/decoding.py."""
    dataset = InBatches()
    assert list(DataLoader(dataset, 2, collate_fn=list)) == [[0, 10], [20, 30]]
    assert dataset.asked == [[0, 1], [2, 3]]


def test_the_error_for_a_dead_worker():
    """One line and not a traceback where a loader worker dies: as_user_error() in base/errors.py knows torch's error by
    these words."""
    for _ in range(4):  # rarely, torch's handler raises the error in a destructor, where Python ignores it
        try:
            try:
                list(DataLoader(Numbers(deadly=2), 1, num_workers=1, multiprocessing_context='fork'))
            except (ConnectionError, EOFError):  # the connection is closed before the system reports the death
                time.sleep(2)
        except RuntimeError as error:
            assert 'DataLoader worker (pid' in str(error)
            return
    pytest.fail('no error for a dead worker')


def test_the_errors_for_too_little_memory():
    """One line and not a traceback where memory runs out: as_user_error() in base/errors.py knows torch's errors by
    the name of the class and by the name of the allocator, without importing torch."""
    assert torch.OutOfMemoryError.__name__ == 'OutOfMemoryError'
    with pytest.raises(RuntimeError, match='DefaultCPUAllocator') as error:
        torch.empty(2 ** 60, dtype=torch.uint8)
    assert isinstance(as_user_error(error.value), MemoryLimitError)


def test_the_thread_that_pins_memory():
    """A dead worker with pinned memory: data/loading/workers.py knows torch's thread by the name of its function, and
    its end by the words of an error."""
    from torch.utils.data import _utils, dataloader
    assert '_pin_memory_loop' in threading.Thread(target=_utils.pin_memory._pin_memory_loop).name
    names = dataloader._MultiProcessingDataLoaderIter._try_get_data.__code__.co_consts
    names += dataloader._MultiProcessingDataLoaderIter._get_data.__code__.co_consts
    assert any('Pin memory thread exited' in name for name in names if isinstance(name, str))


def test_the_errors_for_the_state_of_another_optimizer():
    """Resuming with another optimizer: weights/resume.py suggests --no-resume-opt, by the words of torch's errors."""
    values = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    state = torch.optim.SGD(values, lr=1.).state_dict()
    for parameters in (values[:1], [{'params': [value]} for value in values]):
        with pytest.raises(ValueError, match='parameter group'):
            torch.optim.SGD(parameters, lr=1.).load_state_dict(state)


def test_storages_are_identified_by_their_address():
    """Checkpoints written in the background: snapshot() in base/background.py copies memory that tensors share once."""
    whole = torch.arange(6.)
    part, other = whole[2:4], torch.arange(6.)
    assert part.untyped_storage()._cdata == whole.untyped_storage()._cdata != other.untyped_storage()._cdata


def test_a_full_disk_is_the_context_of_the_error_of_torch():
    """A full disk is reported in one line and the run continues: training/checkpoints/saver.py looks for the OSError
    behind torch's RuntimeError."""
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, 'No space left on device')

        def flush(self):
            pass

    with pytest.raises((RuntimeError, OSError)) as caught:
        torch.save(torch.zeros(100_000), Full())
    if not isinstance(caught.value, OSError):
        assert isinstance(caught.value.__context__, OSError)


def test_a_refused_pickle_names_its_global(tmp_path):
    """Foreign checkpoints: base/safe_load.py names what a refused file holds, from the text of torch's error."""
    path = tmp_path / 'file.pth'
    torch.save({'x': timedelta}, path)
    with pytest.raises(pickle.UnpicklingError, match=r'GLOBAL datetime\.timedelta'):
        torch.load(path, weights_only=True)


def test_files_are_zip_files_with_sums(tmp_path):
    """Damaged checkpoints: verify() in base/safe_load.py checks the sums of a zip file. torch does not."""
    path = tmp_path / 'file.pth'
    torch.save({'x': torch.full((100,), 7, dtype=torch.uint8)}, path)
    content = path.read_bytes()
    assert content[:4] == b'PK\x03\x04'
    with zipfile.ZipFile(path) as parts:
        assert parts.testzip() is None and all(part.CRC for part in parts.infolist() if part.file_size)
    path.write_bytes(content.replace(bytes([7] * 100), bytes([7] * 99 + [8])))
    with zipfile.ZipFile(path) as parts:
        assert parts.testzip().endswith('data/0')


def test_base_classes_of_layers():
    """--sync-bn, --split-bn and batches of one image: assembly/model.py asks for _BatchNorm. --init-std:
    network.py asks for _ConvNd."""
    for layer in nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2), BatchNormAct2d(2):
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert not isinstance(nn.LayerNorm(2), nn.modules.batchnorm._BatchNorm)
    for layer in nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1):
        assert isinstance(layer, nn.modules.conv._ConvNd)


@pytest.mark.parametrize('gradient, found', [(1., False), (float('inf'), True), (float('nan'), True)])
def test_the_gradient_scaler_reports_infinite_gradients(gradient, found):
    """--amp in float16 on CUDA: LossScaler in assembly/loss_scaler.py reads, before the step, whether it will be
    skipped."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.)
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(weight.sum()).backward()
    weight.grad.fill_(gradient)
    scaler.unscale_(optimizer)
    flags = scaler._found_inf_per_device(optimizer)
    assert [bool(flag.item()) for flag in flags.values()] == [found]


def test_modes_of_the_compiler():
    """--torchcompile-mode: options/timm_names.py takes its choices from torch, and refuses modes that record CUDA
    graphs together with --grad-accum-steps."""
    modes = torch._inductor.list_mode_options()
    assert {'default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'} <= modes.keys()
    recorded = {name for name, options in modes.items() if options.get('triton.cudagraphs')}
    assert {'reduce-overhead', 'max-autotune'} <= recorded
    assert not {'default', 'max-autotune-no-cudagraphs'} & recorded


def test_the_compiler_of_aot_autograd():
    """--aot-autograd of validate.py: evaluation/evaluated_model.py compiles with functorch, which is deprecated."""
    from functorch.compile import memory_efficient_fusion
    assert callable(memory_efficient_fusion)


def test_the_timeout_and_the_abort_of_a_process_group():
    """--hang-timeout, and errors on one of several ranks: assembly/process_group.py sets the timeout of torch and ends
    the group without waiting for the other ranks."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        name = 'set_timeout' if hasattr(distributed_c10d, 'set_timeout') else '_set_pg_timeout'
        getattr(distributed_c10d, name)(timedelta(seconds=77))
        group = distributed_c10d._get_default_group()
        assert group._get_backend(torch.device('cpu')).options._timeout == timedelta(seconds=77)
        distributed_c10d._abort_process_group()
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_functions_in_which_a_rank_waits():
    """--hang-timeout: the watchdog in training/guards/watchdog.py tells a rank that hangs from one that waits for it,
    by the names of functions on the stack."""
    collectives = {name for name in _WAITING if hasattr(dist, name)}  # all_gather_single: from torch 2.14
    assert _WAITING - collectives <= {'_pre_forward', '_engine_run_backward', 'all_gather_single'}
    source = ''.join(path.read_text() for path in Path(agmax_timm.__file__).parent.rglob('*.py'))
    used = set(re.findall(r'\b(?:all_gather|all_reduce|broadcast|barrier|reduce_scatter)\w*', source))
    assert {name for name in used if hasattr(dist, name)} <= collectives
    for name in collectives:
        function = getattr(dist, name)
        assert inspect.unwrap(function).__code__.co_name == name
    assert nn.parallel.DistributedDataParallel._pre_forward.__code__.co_name == '_pre_forward'
    assert torch.cuda.synchronize.__code__.co_name == 'synchronize'
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda _: frames.extend(frame.name for frame in traceback.extract_stack()))
    frames = []
    x.sum().backward()
    assert '_engine_run_backward' in frames


def test_sharded_modules_keep_names_and_states():
    """--fsdp: assembly/sharding.py finds shards by the names of whole weights, and gathers them into a checkpoint."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        names = [name for name, _ in model.named_parameters()]
        fully_shard(model, mesh=init_device_mesh('cpu', (1,)), reshard_after_forward=True)
        assert [name for name, _ in model.named_parameters()] == names
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert not any(isinstance(buffer, DTensor) for buffer in model.buffers())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value.full_tensor() if isinstance(value, DTensor) else value, whole[name])
        model.set_requires_gradient_sync(False)
        like = model[0].weight
        momentum = distribute_tensor(whole['0.weight'], like.device_mesh, like.placements, src_data_rank=None)
        torch.testing.assert_close(momentum.full_tensor(), whole['0.weight'])
    finally:
        dist.destroy_process_group()


def test_parameters_of_transforms():
    """--augment-backend fast: data/arrays/transform.py draws with the functions of torchvision's transforms, in the
    same order as they do, and reads these attributes."""
    jitter = transforms.ColorJitter(.1, .2, .3, .4)
    order, *factors = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    assert sorted(order.tolist()) == [0, 1, 2, 3] and all(isinstance(factor, float) for factor in factors)
    assert transforms.ColorJitter(.1).hue is None
    assert transforms.RandomCrop((8, 6), padding=[2, 3]).padding == [2, 3]  # of width and height
    assert transforms.RandomCrop((8, 6)).get_params(torch.zeros(3, 8, 6), (8, 6)) == (0, 0, 8, 6)
    blur = transforms.GaussianBlur(3, (.1, 2.))
    assert blur.kernel_size == (3, 3) and .1 <= blur.get_params(*blur.sigma) <= 2.
    for make in transforms.RandomHorizontalFlip, transforms.RandomGrayscale:
        torch.manual_seed(0)
        drawn = torch.rand(1)
        torch.manual_seed(0)
        image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
        make(p=drawn.item() + .01)(image)
        left = torch.rand(1)
        torch.manual_seed(0)
        torch.rand(1)
        assert left == torch.rand(1)  # one number each
