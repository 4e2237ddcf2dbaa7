"""Data in shards: one process and two processes read every sample, and data that cannot be read is refused at once."""
import csv
import functools
import http.server
import json
import logging
import math
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections import Counter
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist

from agmax_timm import create_two_view_loader
from agmax_timm.assembly.loaders import build_eval_loader
from agmax_timm.assembly.model import Precision
from agmax_timm.base.errors import DataError
from agmax_timm.commands import train as train_cli
from agmax_timm.commands import validate as validate_cli
from agmax_timm.data.sources.checks import check_classes
from agmax_timm.data.sources.classes import class_names
from agmax_timm.data.sources.shards import check_delivered, open_dataset
from agmax_timm.evaluation.evaluate import evaluate
from agmax_timm.training import epochs as run_epochs
from tests.helpers.images import CLASSES
from tests.helpers.ranks import free_port, free_ports
from tests.helpers.shards import LENGTHS, write_parquet, write_shards

BATCH = 4
LEVELS = {'input_size': (3, 16, 16), 'mean': (0.,) * 3, 'std': (1.,) * 3, 'interpolation': 'bilinear', 'crop_pct': 1.,
          'crop_mode': 'center'}
CPU = torch.device('cpu')
SMALL = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '16', '-b', str(BATCH), '-j', '0',
         '--warmup-epochs', '0', '--lr', '0.05', '--epochs', '1', '--agmax']


def numbers_of(images):
    return torch.floor(images.mean((1, 2, 3)) * 255 / 8).long().tolist()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, and where `ranges` is set the last bytes of them as well."""

    ranges = True

    def do_GET(self):
        wanted = self.headers.get('Range')
        path = Path(self.translate_path(self.path))
        if not (wanted and self.ranges and path.exists()):
            return super().do_GET()
        data = path.read_bytes()
        end = data[int(wanted.removeprefix('bytes=')):]
        self.send_response(206)
        self.send_header('Content-Length', str(len(end)))
        self.send_header('Content-Range', f'bytes {len(data) - len(end)}-{len(data) - 1}/{len(data)}')
        self.end_headers()
        self.wfile.write(end)

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # a client that only asks for the size hangs up
            super().copyfile(source, outputfile)

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def serve():
    """Function: the URL of a folder."""
    servers = []

    def start(folder, ranges=True):
        handler = type('Handler', (Handler,), {'ranges': ranges})
        server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}'
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='module')
def sources(tmp_path_factory, serve):
    """Name and root of the same samples, by kind."""
    folder = tmp_path_factory.mktemp('sources')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
        patch.setattr(datasets.config, 'SLEEP_TIME_ON_THREADS_SHUTDOWN', 0)
        datasets.disable_progress_bars()
        shards, cache = write_shards(folder), str(folder / 'cache')
        parquet = write_parquet(folder / 'parquet')
        yield {'wds': ('wds/x', str(shards)), 'http': ('wds/x', serve(shards)), 'hfids': (f'hfids/{parquet}', cache),
               'hfds': (f'hfds/{parquet}', cache)}


@pytest.fixture
def shards(tmp_path):
    """A copy that a test may change."""
    (tmp_path / 'shards').mkdir()
    return write_shards(tmp_path / 'shards')


def split_name(kind, split):
    return 'validation' if kind.startswith('hf') and split == 'val' else split


def open_split(kind, source, split, workers=0, **kwargs):
    name, root = source
    if kind == 'hfids':  # files do not state the number of samples
        kwargs.setdefault('num_samples', sum(LENGTHS[split]))
    return open_dataset(name, root, split_name(kind, split), workers=workers, batch_size=BATCH,
                        is_training=split == 'train', **kwargs)


def read_training(kind, source, workers, epochs=2):
    """For each epoch: the numbers of the samples, and the numbers of delivered and announced batches."""
    dataset = open_split(kind, source, 'train', workers)
    loader = create_two_view_loader(
        dataset, 16, BATCH, num_workers=workers, mean=LEVELS['mean'],
        std=LEVELS['std'], color_jitter=None, device=CPU)
    epochs_read = []
    for epoch in range(epochs):
        for part in (dataset, loader.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        numbers, batches = [], 0
        for views, target in loader:
            first, second = numbers_of(views[:BATCH]), numbers_of(views[BATCH:])
            assert first == second and target.tolist() == [n % 3 for n in first + second]
            numbers += first
            batches += 1
        epochs_read.append((numbers, batches, len(loader)))
    return epochs_read


class Recorder(torch.nn.Module):
    """A model whose logits depend on the image. It records the numbers of all images."""

    def __init__(self):
        super().__init__()
        self.numbers = []
        self.batches = 0

    def forward(self, images):
        self.numbers += numbers_of(images)
        self.batches += 1
        return torch.stack([(images.mean((1, 2, 3)) * k).sin() for k in (3., 5., 7.)], dim=1)


def read_evaluation(kind, source, workers, split='val'):
    """The numbers of the samples, the metrics, and the numbers of batches delivered and announced."""
    model = Recorder()
    args = Namespace(workers=workers, pin_mem=False, no_pin_mem=False,
                     naflex_loader=False, no_prefetcher=False, channels_last=False)
    loader = build_eval_loader(args, open_split(kind, source, split), LEVELS, CPU, Precision(), BATCH)
    metrics = evaluate(model, loader, args, CPU, Precision(), 1)
    return model.numbers, metrics, model.batches, len(loader)


# Files for hfids/ do not state their number of samples.
LENGTH_FLAGS = {'hfds': [], 'hfids': ['--train-num-samples', 18, '--val-num-samples', 13]}
KINDS = ('wds', 'http', 'hfids', 'hfds')
CASES = [(kind, workers) for kind in KINDS for workers in (0, 2)]


def read_all(sources):
    return {(kind, workers): tuple(read(kind, sources[kind], workers) for read in (read_training, read_evaluation))
            for kind, workers in CASES}


def run_rank(rank, sources, folder, ports):
    """All work of a rank, in one pair of forked processes. To import torch and timm again takes seconds."""
    sys.stderr = open(folder / f'stderr-{rank}', 'w', buffering=1)
    sys.stdout = open(folder / f'stdout-{rank}', 'w', buffering=1)
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
        if sys.platform == 'linux':
            os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
        name, root = sources['wds']
        runs = {
            'run': ['--train-split', 'train', '--val-split', 'val', '-j', '2'],
            'too few for ranks': ['--train-split', 'train-0.tar|6', '--val-split', 'val'],
            'too few for workers': ['--train-split', 'train-{0..2}.tar|15', '--val-split', 'val', '-j', '2'],
        }
        status = {}
        for port, (experiment, argv) in zip(ports, runs.items()):
            os.environ['MASTER_PORT'] = str(port)
            try:
                train_cli.main(['--data-dir', root, '--dataset', name, *SMALL, '--output', str(folder), '--experiment',
                               experiment, *argv])
            except SystemExit as error:
                status[experiment] = error.code
        dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
        one_shard = read_evaluation('wds', sources['wds'], 2, 'val-0.tar|7')
        torch.save((status, read_all(sources), one_shard), folder / f'{rank}.pt')
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.fixture(scope='module')
def ranks(sources, tmp_path_factory):
    """Folder with the outcomes of two ranks."""
    folder, ports = tmp_path_factory.mktemp('ranks'), free_ports(3)
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=run_rank, args=(rank, sources, folder, ports)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung and not any(process.exitcode for process in processes), (folder / 'stderr-0').read_text()[-3000:]
    return folder


@pytest.fixture(scope='module')
def outcomes(sources, ranks):
    """What each rank read, by number of ranks."""
    return {1: [read_all(sources)], 2: [torch.load(ranks / f'{rank}.pt', weights_only=False)[1] for rank in range(2)]}


@pytest.mark.parametrize('world_size', [1, 2])
@pytest.mark.parametrize('kind, workers', CASES)
def test_training_delivers_the_announced_batches_on_every_rank(outcomes, kind, workers, world_size):
    total, readers = sum(LENGTHS['train']), world_size * max(1, workers)
    # Each reader rounds its part up to whole batches; a data set with an index drops what is left.
    expected = max(1, workers) * math.ceil(total / readers / BATCH)
    if kind == 'hfds':
        expected = math.ceil(total / world_size) // BATCH
    for epoch in range(2):
        read = [outcome[kind, workers][0][epoch] for outcome in outcomes[world_size]]
        assert [(batches, announced) for _, batches, announced in read] == [(expected, expected)] * world_size
        assert sum(len(numbers) for numbers, *_ in read) == expected * world_size * BATCH
        assert {n for numbers, *_ in read for n in numbers} <= set(range(total))


@pytest.mark.parametrize('world_size', [1, 2])
@pytest.mark.parametrize('kind', ['wds', 'http', 'hfids'])
def test_the_order_of_training_changes_each_epoch(outcomes, kind, world_size):
    first, second = ([outcome[kind, 0][0][epoch][0] for outcome in outcomes[world_size]] for epoch in range(2))
    assert first != second and len({tuple(numbers) for numbers in first}) == world_size


def test_training_reads_every_sample_within_some_epochs(sources):
    """A reader does not finish long shards. The shards of a reader are drawn anew each epoch."""
    epochs = read_training('wds', sources['wds'], workers=4, epochs=12)
    assert {n for numbers, *_ in epochs for n in numbers} == set(range(sum(LENGTHS['train'])))


@pytest.mark.parametrize('world_size', [1, 2])
@pytest.mark.parametrize('kind, workers', [case for case in CASES if case[0] != 'hfds'])
def test_evaluation_reads_every_sample_once(outcomes, kind, workers, world_size):
    read = [outcome[kind, workers][1] for outcome in outcomes[world_size]]
    assert Counter(n for numbers, *_ in read for n in numbers) == Counter(range(sum(LENGTHS['val'])))
    if kind != 'hfids':
        assert all(batches == announced for *_, batches, announced in read)


def test_evaluation_of_one_shard_leaves_a_rank_idle(ranks):
    (numbers, metrics, *_), (none, same, *_) = (
        torch.load(ranks / f'{rank}.pt', weights_only=False)[2] for rank in range(2))
    assert sorted(numbers) == list(range(7)) and none == [] and metrics == same


@pytest.mark.parametrize('world_size', [1, 2])
@pytest.mark.parametrize('kind, workers', CASES)
def test_metrics_count_all_samples(outcomes, kind, workers, world_size):
    total = sum(LENGTHS['val'])
    grey = torch.tensor([8 * n + 4 for n in range(total)], dtype=torch.float64) / 255
    logits = torch.stack([(grey * k).sin() for k in (3., 5., 7.)], dim=1)
    target = torch.arange(total) % 3
    for outcome in outcomes[world_size]:
        metrics = outcome[kind, workers][1][1]
        assert metrics['top1'] == 100 * (logits.argmax(1) == target).sum().item() / total
        expected = -logits.log_softmax(1).gather(1, target[:, None]).mean().item()
        assert metrics['loss'] == pytest.approx(expected, abs=1e-6)


def test_metrics_of_two_ranks_equal_those_of_validate(ranks, sources, capsys):
    with open(ranks / 'run' / 'summary.csv', newline='') as f:
        row = next(csv.DictReader(f))
    name, root = sources['wds']
    validate_cli.main(['--data-dir', root, '--dataset', name, '--split', 'val', '-j', '0', '--checkpoint',
                     str(ranks / 'run' / 'last.pth.tar')])
    alone = json.loads(capsys.readouterr().out.split('--result\n')[1])
    assert round(float(row['eval_top1']), 4) == alone['top1']
    assert float(row['eval_loss']) == pytest.approx(alone['loss'], abs=1e-6)


@pytest.mark.parametrize('experiment, words', [
    ('too few for ranks', ['train-0.tar|6', '1 shard(s)', '2 rank(s)', '1 process(es) at most', '2 shards or more']),
    ('too few for workers', ['train-{0..2}', '3 shard(s)', '2 rank(s) x 2 worker(s)', '--workers 1', '4 shards']),
])
def test_fewer_shards_than_readers_is_an_error_on_every_rank(ranks, experiment, words):
    for rank in range(2):
        assert torch.load(ranks / f'{rank}.pt', weights_only=False)[0][experiment] == 2
        lines = [line for line in (ranks / f'stderr-{rank}').read_text().splitlines() if 'error:' in line]
        assert any(all(word in line for word in words) for line in lines), lines
    assert not (ranks / experiment).exists()


@pytest.fixture
def fail(capsys, tmp_path, monkeypatch):
    """Function: the error of train.py or validate.py, which ends with status 2 and does not try again later."""
    waits, sleep = [], time.sleep
    # The end of a process is polled at shorter intervals than 0.1 s.
    monkeypatch.setattr(time, 'sleep', lambda seconds: sleep(seconds) if seconds < 0.1 else waits.append(seconds))
    def run(*argv, main=train_cli.main):
        options = [*SMALL, '--output', str(tmp_path), '--experiment', 'run'] if main is train_cli.main else []
        with pytest.raises(SystemExit) as exit_info:
            main([*options, *map(str, argv)])
        assert exit_info.value.code == 2 and not waits
        assert not (tmp_path / 'run').exists()
        return next(line for line in capsys.readouterr().err.splitlines() if 'error:' in line)
    return run


WDS = ['--dataset', 'wds/x', '--val-split', 'val']


@pytest.mark.parametrize('argv, words', [
    (['--train-split', 'train-{0..3}.tar'], ["'train-{0..3}.tar'", '--train-num-samples N', 'SPLIT|N']),
    (['--val-split', 'val-{0..3}.tar'], ["'val-{0..3}.tar'", '--val-num-samples N']),
    (['--train-split', 'elsewhere'], ['elsewhere']),
    (['-j', '5'], ["'train'", '4 shard(s)', '5 worker(s)', '--workers 4']),
    (['--train-split', 'train-{0..4}.tar|20'], ['train-4.tar', 'No such file']),
    (['--epoch-repeats', '2'], ['--epoch-repeats 2', '--train-num-samples']),
    (['--aug-splits', '2'], ["--aug-splits needs data that can be indexed, got --dataset 'wds/x'", 'hfds/']),
    (['--aug-repeats', '3'], ['--aug-repeats needs a data set with an index']),
    (['--use-multi-epochs-loader'], ['--use-multi-epochs-loader needs']),
    (['--target-key', 'nothing'], ['train-0.tar', "'nothing'", "only 'other'", '--target-key']),
    (['--input-key', 'tiff'], ["split 'train'", '--input-key']),
])
def test_options_that_shards_do_not_support_are_refused(sources, fail, argv, words):
    line = fail('--data-dir', sources['wds'][1], *WDS, *argv)
    assert all(word in line for word in words), line


def test_validate_needs_the_number_of_samples(sources, ranks, fail):
    line = fail('--data-dir', sources['wds'][1], '--dataset', 'wds/x', '--split', 'val-{0..3}.tar', '--checkpoint',
                ranks / 'run' / 'last.pth.tar', main=validate_cli.main)
    assert '--num-samples N' in line


def test_missing_folders_hosts_and_shards_are_refused(fail, tmp_path, serve, sources):
    assert '--data-dir' in fail(*WDS)
    assert 'nowhere' in fail('--data-dir', tmp_path / 'nowhere', *WDS)
    port = free_port()
    assert f"http://127.0.0.1:{port}' does not answer" in fail('--data-dir', f'http://127.0.0.1:{port}', *WDS)
    url = sources['http'][1]
    line = fail('--data-dir', url, *WDS, '--train-split', 'train-{0..4}.tar|20')
    assert f'{url}/train-4.tar' in line and '404' in line


def test_shards_at_a_url_need_curl(fail, monkeypatch, sources):
    monkeypatch.setattr('shutil.which', lambda name: None)
    url = sources['http'][1]
    assert f"reads '{url}' with curl, which is not installed: install it with the package manager of your system" in (
        fail('--data-dir', url, *WDS))


def test_a_host_that_does_not_answer_is_refused(fail, monkeypatch):
    monkeypatch.setattr('agmax_timm.data.sources.shards.URL_TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}'
        assert f"{url}' does not answer" in fail('--data-dir', url, *WDS)


@pytest.mark.parametrize('source, size', [
    (source, size) for source in ('folder', 'url') for size in (0, 512 * 5, 512 * 5 + 7)
] + [('url without ranges', 512 * 5 + 7)])  # truncation at a block is only visible at the end of the file
def test_a_truncated_shard_is_refused(shards, serve, fail, source, size):
    os.truncate(shards / 'val-1.tar', size)
    root = shards if source == 'folder' else serve(shards, ranges=source == 'url')
    line = fail('--data-dir', root, *WDS)
    assert 'val-1.tar' in line and f'incomplete, {size} bytes' in line


@pytest.mark.parametrize('blocks', [6, 7])
def test_samples_lost_during_evaluation_are_reported(shards, caplog, blocks):
    dataset = open_split('wds', ('wds/x', str(shards)), 'val')
    os.truncate(shards / 'val-0.tar', blocks * 512 + 100)
    args = Namespace(workers=0, pin_mem=False, no_pin_mem=False, naflex_loader=False,
                     no_prefetcher=False, channels_last=False)
    loader = build_eval_loader(args, dataset, LEVELS, CPU, Precision(), BATCH)
    model = Recorder()
    with caplog.at_level(logging.WARNING):
        evaluate(model, loader, args, CPU, Precision(), 1)
    lost = 13 - len(model.numbers)
    assert lost > 0 and re.search(f'Evaluated {13 - lost} samples .* 13', caplog.messages[-1])


def test_shards_deleted_during_training_are_an_error(shards, tmp_path, capsys, monkeypatch):
    """If a rank ended its epoch early, the others would wait for it."""
    train_one_epoch = run_epochs.train_one_epoch

    def without_shards(*args):
        for path in shards.glob('train-*'):
            path.unlink()
        return train_one_epoch(*args)
    monkeypatch.setattr(run_epochs, 'train_one_epoch', without_shards)
    with pytest.raises(SystemExit) as exit_info:
        train_cli.main([*SMALL, '--output', str(tmp_path), '--data-dir', str(shards), *WDS])
    assert exit_info.value.code == 2 and 'after 0 of 5 batches' in capsys.readouterr().err


def test_fewer_batches_than_announced_are_an_error():
    check_delivered(2, 2)
    with pytest.raises(DataError, match='1 of 2 batches.*--target-key'):
        check_delivered(1, 2)


def test_a_batch_size_other_than_that_of_the_data_is_refused(sources):
    name, root = sources['wds']
    dataset = open_dataset(name, root, 'train', is_training=True, batch_size=3)
    with pytest.raises(ValueError, match='batch_size=4'):
        create_two_view_loader(dataset, 16, 4, device='cpu')


def test_evaluation_with_more_workers_than_shards_reads_every_sample(shards):
    name = 'val-0.tar|7'
    dataset = open_dataset('wds/x', str(shards), name, batch_size=BATCH)
    args = Namespace(workers=3, pin_mem=False, no_pin_mem=False, naflex_loader=False,
                     no_prefetcher=False)
    loader = build_eval_loader(args, dataset, LEVELS, CPU, Precision(), BATCH)
    assert sorted(n for images, _ in loader for n in numbers_of(images)) == list(range(7))


def train_once(tmp_path, *argv):
    train_cli.main([*SMALL, '--output', str(tmp_path), '--experiment', 'run', *map(str, argv)])
    with open(tmp_path / 'run' / 'summary.csv', newline='') as f:
        return next(csv.DictReader(f))


@pytest.mark.parametrize('kind', ['wds', 'http', 'hfds', 'hfids', 'torch', 'imagefolder', 'imagefolder in sequence'])
def test_every_kind_trains_and_validates(sources, photos, tmp_path, kind):
    argv = {
        'torch': ['--dataset', 'torch/image_folder', '--data-dir', photos],
        'imagefolder': ['--dataset', f'hfds/{photos}', '--data-dir', tmp_path / 'cache'],
        'imagefolder in sequence': ['--dataset', f'hfids/{photos}', '--data-dir', tmp_path / 'cache',
                                    '--train-num-samples', 12, '--val-num-samples', 12],
    }.get(kind) or ['--dataset', sources[kind][0], '--data-dir', sources[kind][1],
                    '--val-split', split_name(kind, 'val')]
    if kind == 'hfids':
        argv += ['--train-num-samples', 18, '--val-num-samples', 13]
    row = train_once(tmp_path, *argv)
    assert float(row['train_loss']) > 0 and 'train_agreement' in row
    # the top-1 of so many samples
    count = 12 if kind in ('torch', 'imagefolder', 'imagefolder in sequence') else 13
    assert round(float(row['eval_top1']) * count / 100, 6) == round(float(row['eval_top1']) * count / 100)


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_class_names_of_hugging_face_data_are_known(sources, kind):
    train, val = (open_split(kind, sources[kind], split) for split in ('train', 'val'))
    assert class_names(train) == list(CLASSES)
    check_classes(train, val, 3)
    with pytest.raises(DataError, match='--num-classes 3'):
        check_classes(train, val, 2)


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_keys_of_image_and_label_are_used(tmp_path, kind):
    folder = write_parquet(tmp_path / 'parquet', image='picture', label='kind')
    argv = ['--dataset', f'{kind}/{folder}', '--data-dir', tmp_path / 'cache', '--input-key', 'picture', '--target-key',
            'kind', *LENGTH_FLAGS[kind]]
    assert float(train_once(tmp_path, *argv)['train_loss']) > 0


def test_target_key_names_a_field_of_the_json_files(sources):
    dataset = open_split('wds', sources['wds'], 'val', target_key='other')
    assert [(int(np.asarray(image)[0, 0, 0]) // 8 + 1) % 3 for image, _ in dataset] == [t for _, t in dataset]


def test_hfids_needs_the_number_of_samples(sources, fail, tmp_path):
    name, root = sources['hfids'][0], tmp_path / 'cache'  # hfds/ leaves the numbers in its own
    line = fail('--dataset', name, '--data-dir', root)
    assert "split 'train'" in line and '--train-num-samples N' in line
    line = fail('--dataset', name, '--data-dir', root, '--train-num-samples', 18)
    assert "split 'validation'" in line and '--val-num-samples N' in line


def test_more_workers_than_files_are_refused(sources, fail):
    name, root = sources['hfids']
    line = fail('--dataset', name, '--data-dir', root, '--train-num-samples', 18, '--val-num-samples', 13, '-j', '5')
    assert '4 shard(s)' in line and '5 worker(s)' in line and '--workers 4' in line and 'hfds/' in line


@pytest.mark.parametrize('argv, words', [
    (['--train-split', 'nowhere'], ['nowhere']),
    (['--input-key', 'photo'], ["split 'train'", '--input-key']),
    (['--target-key', 'kind'], ['kind', '--target-key']),
    (['--dataset', 'hfds/nowhere/nothing'], ['nowhere/nothing']),
])
@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_data_that_hugging_face_cannot_open_is_refused_in_one_line(sources, fail, kind, argv, words):
    name, root = sources[kind]
    argv = [word.replace('hfds/', f'{kind}/') for word in argv]
    line = fail('--dataset', name, '--data-dir', root, *LENGTH_FLAGS[kind], *argv)
    assert all(word in line for word in words), line


@pytest.mark.parametrize('package, name', [('webdataset', 'wds/x'), ('datasets', 'hfds/x'), ('datasets', 'hfids/x')])
def test_a_missing_package_is_named(shards, fail, monkeypatch, package, name):
    monkeypatch.setattr('agmax_timm.data.sources.shards.find_spec', {package: None}.get)
    assert f'pip install {package}' in fail('--dataset', name, '--data-dir', shards)
