"""Scripts from the command to the end: train.py, validate.py, a signal, memory of --dry-run."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers.paths import REPOSITORY

DEMO = ['-c', 'hparams/demo.yaml', '--log-interval', '5']


def start(*words):
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def result_of(process):
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return json.loads(output.split('--result\n')[1])


def test_a_run_learns_and_validate_repeats_its_metrics(device, record_property, tmp_path):
    on_gpu = device.type == 'cuda'
    flags = ['--device', device, *(['--amp', '--amp-dtype', 'bfloat16', '--channels-last'] if on_gpu else [])]
    run = start('train.py', *DEMO, *flags, '--epochs', 10 if on_gpu else 1, '--val-interval', 1, '--model-ema',
                '--model-ema-decay', 0.9, '-j', 2 if on_gpu else 0, '--output', tmp_path, '--experiment', 'run',
                *(['--report'] if on_gpu else []))
    best = result_of(run)[-1]['validation']
    record_property('top-1 of the demo', best['top1'])
    assert best['top1'] > (70 if on_gpu else 20)
    assert (tmp_path / 'run' / 'report.html').exists() == on_gpu
    again = result_of(start('validate.py', '--dataset', 'demo', '-b', 500, '--checkpoint',
                            tmp_path / 'run' / 'model_best.pth.tar', '--use-ema', *flags))
    assert again['top1'] == pytest.approx(best['top1'], abs=0.3 if on_gpu else 1e-3)  # other kernels round otherwise


def test_a_signal_saves_and_ends_in_status_75(device, tmp_path):
    run = start('train.py', *DEMO, '--device', device, '--epochs', 500, '--val-interval', 500, '--recovery-interval', 5,
                '--amp', '--amp-dtype', 'bfloat16', '--output', tmp_path, '--experiment', 'run')
    end = time.monotonic() + 100
    while not any((tmp_path / 'run').glob('recovery-*')):
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75 and 'SIGTERM: saved at' in errors, errors


def test_a_dry_run_states_the_memory_of_the_device(device):
    on_gpu = device.type == 'cuda'
    model = ['--model', 'resnet50', '--amp', '-b', 64] if on_gpu else ['-b', 8]
    output, errors = start('train.py', *DEMO, '--dry-run', '--device', device, *model).communicate(timeout=200)
    line = next(line for line in output.splitlines() if line.strip().startswith('memory'))
    assert (f'of {torch.cuda.get_device_name()}; tensors took' if on_gpu else 'host memory') in line, errors


def test_a_missing_gpu_is_refused(cuda, tmp_path):
    run = start('train.py', *DEMO, '--device', f'cuda:{torch.cuda.device_count()}', '--output', tmp_path)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 2 and 'Traceback' not in errors, errors


def test_a_gpu_is_selected_by_its_number(cuda, tmp_path):
    result_of(start('train.py', *DEMO, '--device', 'cuda:0', '--epochs', 1, '--val-interval', 1, '--output', tmp_path))


def test_more_processes_than_gpus_are_refused(cuda, tmp_path):
    count = torch.cuda.device_count()
    environment = dict(os.environ, RANK=str(count), LOCAL_RANK=str(count), WORLD_SIZE=str(count + 1))
    run = subprocess.run([sys.executable, 'train.py', *DEMO, '--output', tmp_path], cwd=REPOSITORY, env=environment,
                         capture_output=True, text=True, timeout=200)
    assert run.returncode == 2 and 'Traceback' not in run.stderr, run.stderr
