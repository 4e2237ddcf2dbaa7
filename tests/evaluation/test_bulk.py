"""validate.py on several models: folders of checkpoints, names and patterns, and retries with smaller batches."""
import csv
import fnmatch
import glob
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from timm.models import create_model, list_models

from agmax_timm.assembly import loaders
from agmax_timm.commands import validate as validate_cli
from agmax_timm.evaluation import bulk, evaluated_model
from agmax_timm.options.parse import parse_validate_args
from agmax_timm.weights.staging import stage
from tests.helpers.flags import SMALL_VALIDATION
from tests.helpers.ranks import finish_ranks, logs, start_ranks

RESNET = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32']


@pytest.fixture
def folder(weights, tmp_path):
    """Folder of a run of test_resnet with 3 classes. Its last and best checkpoints are hard links."""
    for number in (2, 10):
        weights(seed=number, file=f'checkpoint-{number}.pth.tar')
    for name, number in (('last', 10), ('model_best', 2)):
        os.link(tmp_path / f'checkpoint-{number}.pth.tar', tmp_path / f'{name}.pth.tar')
    return tmp_path


@pytest.mark.slow
def test_each_checkpoint_of_a_folder_is_evaluated_once(folder, photos, results_of):
    rows = results_of(photos, *RESNET, '--checkpoint', folder, '--results-file', folder / 'results.csv')
    assert isinstance(rows, list) and [row['top1'] for row in rows] == sorted((r['top1'] for r in rows), reverse=True)
    names = {os.path.basename(row['checkpoint']): row for row in rows}
    assert {name: row['aliases'] for name, row in names.items()} == {
        'checkpoint-2.pth.tar': 'model_best.pth.tar', 'checkpoint-10.pth.tar': 'last.pth.tar'}
    for row in names.values():
        alone = results_of(photos, *RESNET, '--checkpoint', row['checkpoint'])
        assert {**alone, 'aliases': row['aliases']} == row
    with open(folder / 'results.csv', newline='') as f:
        assert [row['checkpoint'] for row in csv.DictReader(f)] == [row['checkpoint'] for row in rows]


def test_a_folder_of_runs_gives_the_best_of_each_and_a_pattern_all_matches(folder, tmp_path_factory):
    """Two runs and one other folder. The name of their parent looks like a pattern."""
    root = tmp_path_factory.mktemp('runs') / 'a[1]'
    for run in ('run-10', 'run-2'):
        shutil.copytree(folder, root / run)
    (root / 'notes').mkdir()

    def names(checkpoint):
        jobs = bulk.list_jobs(parse_validate_args(['x', *RESNET, '--checkpoint', str(checkpoint)]))
        return [str(Path(job.checkpoint).relative_to(root)) for job in jobs]
    best = ['run-2/model_best.pth.tar', 'run-10/model_best.pth.tar']
    assert names(root) == best
    assert names(f'{glob.escape(str(root))}/run-*') == best
    assert names(f'{glob.escape(str(root))}/*/last.pth.tar') == [name.replace('model_best', 'last') for name in best]
    assert names(root / 'run-2')[0].startswith('run-2/checkpoint-2')  # a run: all its files


@pytest.mark.parametrize('pattern', ['', '/**'])  # the latter matches the run and its files
def test_checkpoints_are_in_natural_order(folder, pattern):
    args = parse_validate_args(['x', *RESNET, '--checkpoint', f'{folder}{pattern}'])
    assert [(os.path.basename(job.checkpoint), job.aliases) for job in bulk.list_jobs(args)] == [
        ('checkpoint-2.pth.tar', 'model_best.pth.tar'), ('checkpoint-10.pth.tar', 'last.pth.tar')]


@pytest.mark.slow
def test_a_failure_is_a_row_and_the_others_are_evaluated(folder, photos, results_of, capsys):
    (folder / 'checkpoint-5.pth.tar').write_bytes(b'no checkpoint')
    torch.save(create_model('test_resnet', num_classes=4).state_dict(), folder / 'other.pth')
    words = [photos, *RESNET, '--checkpoint', folder, '--results-file', folder / 'results']
    rows = results_of(*words)
    assert [('error' in row, os.path.basename(row['checkpoint'])) for row in rows[2:]] == [
        (True, 'checkpoint-5.pth.tar'), (True, 'other.pth')]
    assert 'damaged' in rows[2]['error'] and 'fc.weight [4, 96]' in rows[3]['error']
    with open(folder / 'results', newline='') as f:
        read = list(csv.DictReader(f))
    assert [bool(row['error']) for row in read] == [False, False, True, True] and list(read[0])[:2] == ['model', 'top1']
    results_of(*words, '--results-format', 'json')
    assert json.loads((folder / 'results').read_text()) == rows

    for name in ('checkpoint-2', 'checkpoint-10', 'last', 'model_best'):
        (folder / f'{name}.pth.tar').unlink()
    assert all('error' in row for row in results_of(*words, status=1))


@pytest.mark.slow
def test_each_model_has_its_own_settings(photos, make_saved, tmp_path, results_of):
    """Number of classes, size and mean differ."""
    folders = {}
    for classes, size, mean in ((5, 48, 0.2), (3, 32, 0.7), (4, 64, 0.5)):
        saved = make_saved(num_classes=classes, size=size)
        saved.data_config['mean'] = (mean,) * 3
        stage(saved, tmp_path / str(classes))
        folders[classes] = f'local-dir:{tmp_path / str(classes)}'
    (tmp_path / 'names.txt').write_text('\n'.join(folders.values()) + '\n\nno_such_model\n')
    rows = results_of(photos, '--model', tmp_path / 'names.txt')
    assert [row['model'] for row in rows if 'error' in row] == ['no_such_model']
    by_model = {row['model']: row for row in rows}
    for name in folders.values():
        assert by_model[name] == results_of(photos, '--model', name)
    assert {row['img_size'] for row in rows if 'top1' in row} == {48, 32, 64}
    assert len({row['param_count'] for row in rows if 'top1' in row}) == 1 and len({
        row['loss'] for row in rows if 'top1' in row}) == 3


def test_the_model_of_a_checkpoint_that_cannot_be_read_is_unknown(tmp_path):
    """`validate` would be called with the default of --model."""
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    for words, model in (([], ''), (['--model', 'test_resnet'], 'test_resnet')):
        options = parse_validate_args(['x', *words, '--checkpoint', str(tmp_path)])
        (row,) = bulk.run_jobs(options, bulk.list_jobs(options), dict, torch.device('cpu'))
        assert 'damaged' in row.pop('error')
        assert row == dict(model=model, checkpoint=str(tmp_path / 'broken.pth'), aliases='')


def test_models_are_listed_by_names_patterns_and_all(tmp_path, refusal, weights, photos, monkeypatch):
    def jobs(*words):
        listed = bulk.list_jobs(parse_validate_args(['x', *map(str, words)]))
        return None if listed is None else [job.model for job in listed]
    assert jobs('--model', 'test_resnet') is None and jobs('--model', 'test_resnet.r160_in1k') is None
    assert jobs('--model', 'local-dir:x*') is None and jobs('--model', 'no_such_model') is None
    assert jobs('--model', 'test_res*') == jobs('--model', 'test_resnet.*') == ['test_resnet.r160_in1k']
    monkeypatch.chdir(tmp_path)
    for name in ('test_resnet', 'test_resnet.txt', 'test_resnet.r160_in1k'):
        (tmp_path / name).write_text('test_vit\n')
    assert jobs('--model', 'test_resnet.txt') == ['test_vit']
    assert jobs('--model', 'test_resnet') is None and jobs('--model', 'test_resnet.r160_in1k') is None
    others = ('*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer')
    assert jobs('--model', 'all') == [name for name in list_models(pretrained=True) if not any(
        fnmatch.fnmatch(name, pattern) for pattern in others)]
    path, _ = weights()
    assert 'names' in refusal(photos, '--model', 'test_res*', '--checkpoint', path)
    assert 'no *.pth.tar' in refusal(photos, '--model', 'test_resnet', '--checkpoint', photos)
    assert "--checkpoint 'nothing*': no *.pth" in refusal(photos, '--model', 'test_resnet', '--checkpoint', 'nothing*')
    (tmp_path / 'empty.txt').write_text('\n')
    assert 'empty.txt' in refusal(photos, '--model', tmp_path / 'empty.txt')


@pytest.mark.slow
def test_an_interruption_keeps_complete_results(folder, photos, results_of, monkeypatch):
    done, build = [], evaluated_model.create_evaluated_model

    def interrupted(*args):
        if done:
            assert json.loads((folder / 'results').read_text())[0]['top1'] >= 0
            raise KeyboardInterrupt
        done.append(args)
        return build(*args)
    monkeypatch.setattr(evaluated_model, 'create_evaluated_model', interrupted)
    words = [photos, *RESNET, '--checkpoint', folder, '--results-file', folder / 'results', '--results-format', 'json']
    rows = results_of(*words, status=130)
    assert [os.path.basename(row['checkpoint']) for row in rows] == ['checkpoint-2.pth.tar']
    assert json.loads((folder / 'results').read_text()) == rows


def test_a_results_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / 'results.json'
    validate_cli.write_results(str(path), [dict(top1=1.)], 'json')
    with pytest.raises(TypeError):
        validate_cli.write_results(str(path), [dict(top1=2.), dict(top1=object())], 'json')
    assert json.loads(path.read_text()) == [dict(top1=1.)]


def test_names_of_any_bytes_are_written_to_a_results_file(tmp_path):
    validate_cli.write_results(str(tmp_path / 'r.csv'), [dict(top1=1., checkpoint=os.fsdecode(b'\xff\xe9.pth.tar'))])
    assert (tmp_path / 'r.csv').read_bytes() == b'top1,checkpoint\r\n1.0,\xff\xe9.pth.tar\r\n'


@pytest.mark.slow
@pytest.mark.parametrize('bulk_mode', [False, True])
def test_retry_reduces_the_batch_size_until_memory_suffices(bulk_mode, folder, photos, results_of, monkeypatch):
    tried, build = [], loaders.build_eval_loader

    def limited(args, *rest):
        tried.append(args.batch_size)
        if args.batch_size > 2:
            raise torch.OutOfMemoryError('out of memory')
        return build(args, *rest)
    monkeypatch.setattr(loaders, 'build_eval_loader', limited)
    path = folder if bulk_mode else folder / 'last.pth.tar'
    flags = [] if bulk_mode else ['--retry']
    results = results_of(photos, *RESNET, '--checkpoint', path, *flags)
    assert tried == [5, 4, 3, 2] * (2 if bulk_mode else 1)  # each begins with the batch that was asked for
    assert all('top1' in row for row in (results if bulk_mode else [results]))

    monkeypatch.setattr(loaders, 'build_eval_loader', lambda *args: 1 / 0)  # no matter of memory
    rows = results_of(photos, *RESNET, '--checkpoint', path, *flags, status=1)
    assert [row['error'] for row in (rows if bulk_mode else [rows])] == ['division by zero'] * (2 if bulk_mode else 1)
    assert isinstance(rows, list if bulk_mode else dict)


def test_retry_reduces_the_batch_size_of_the_checkpoint(ema_run, photos, monkeypatch):
    tried = []

    def never(args, *rest):
        tried.append(args.batch_size)
        assert len(tried) < 9
        raise RuntimeError('CUDA out of memory')
    monkeypatch.setattr(loaders, 'build_eval_loader', never)
    with pytest.raises(SystemExit) as end:
        validate_cli.main([str(photos), '--checkpoint', str(ema_run / 'last.pth.tar'), '--retry', '-j', '0',
                         '--device', 'cpu'])
    assert end.value.code == 1 and tried == [4, 3, 2, 1]


def validate_in_little_memory(rank, words):
    """Evaluate on one of two ranks. With the first checkpoint, the second rank has no memory for 4 images."""
    build = loaders.build_eval_loader

    def limited(args, *rest):
        if rank == 1 and args.checkpoint.endswith('-2.pth.tar') and args.batch_size > 3:
            raise RuntimeError('out of memory')
        return build(args, *rest)
    loaders.build_eval_loader = limited
    validate_cli.main(words)


def test_results_of_ranks_equal_those_of_one_process(folder, imagenet, results_of):
    """11 images on 2 ranks: one evaluates a padded batch. With one model, one rank runs out of memory."""
    next((imagenet / 'val').rglob('*00000012.JPEG')).unlink()
    (folder / 'real.json').write_text(json.dumps([[i % 3] if i % 4 else [] for i in range(11)]))
    (folder / 'valid.txt').write_text('2\n0\n1\n')
    words = [str(imagenet), *RESNET, '--checkpoint', str(folder), '--real-labels', str(folder / 'real.json'),
             '--valid-labels', str(folder / 'valid.txt'), '--results-file', str(folder / 'ranks'),
             '--results-format', 'json', '--metrics-avg', 'macro']
    ranks = start_ranks(2, folder / 'logs', validate_in_little_memory, lambda rank: rank, [*words, *SMALL_VALIDATION])
    assert finish_ranks(ranks) == [0, 0], logs(folder / 'logs')
    for rank, why in enumerate(('another rank failed', 'out of memory')):
        assert f'{why}. Retrying with --batch-size 4' in (folder / 'logs' / f'rank-{rank}.log').read_text()
    of_ranks = json.loads((folder / 'ranks').read_text())
    of_one = results_of(*words)
    for row, expected in zip(of_ranks, of_one, strict=True):
        assert row.pop('loss') == pytest.approx(expected.pop('loss'), rel=1e-6)
    assert of_ranks == of_one and len(of_one) == 2


def test_files_of_broken_updates_are_not_evaluated(folder):
    (folder / 'broken-0-1-rank0.pth').write_bytes(b'')
    args = parse_validate_args(['x', *RESNET, '--checkpoint', str(folder)])
    assert len(bulk.list_jobs(args)) == 2
