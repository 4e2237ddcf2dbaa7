"""The export command: plain timm loads and evaluates what it writes, like the checkpoint itself."""
import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import timm
import torch

from agmax_timm import export, predict
from agmax_timm.commands import train as train_cli
from agmax_timm.weights import onnx_export, saved_model
from agmax_timm.weights.saved_model import read_model
from agmax_timm.weights.staging import stage
from tests.helpers.plain_timm import run_in_plain_timm
from tests.helpers.run_files import load

MODELS = {
    'test_efficientnet': ('--bn-eps', '0.1', '--in-chans', '1', '--gp', 'max', '--img-size', '32', '--crop-pct', '0.7',
                          '--mean', '0.3', '--std', '0.2', '--interpolation', 'bilinear'),
    'test_vit': ('--model-kwargs', 'img_size=32', '--img-size', '32'),
}


@pytest.fixture
def validate(photos, results_of):
    """Function: top-1, top-5 and loss of validate.py."""
    def run(*argv):
        results = results_of(photos, '-b', '4', *argv)
        return [results[name] for name in ('top1', 'top5', 'loss')]
    return run


def fails(capsys, *argv):
    """The one line of error of the command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        export.main(list(map(str, argv)))
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def run(argv):
    export.main(list(map(str, argv)))


# Plain timm on folders of argv; the logits of each on the same input.
PLAIN = """
import json, sys, timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model('local-dir:' + folder, pretrained=True).eval()
    channels = model.pretrained_cfg['input_size'][0]
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 2048 * channels).reshape(2, channels, 32, 32))
    print(json.dumps([model.num_classes, model.pretrained_cfg.get('label_names'), logits.tolist()]))
"""


def logits_in_plain_timm(*folders):
    return [json.loads(line) for line in run_in_plain_timm(PLAIN, *folders, cwd=folders[0]).splitlines()]


def test_plain_timm_gives_the_logits_of_the_checkpoint_from_the_exported_folder(ema_run, train_once, tmp_path):
    exports = {
        'raw': ([ema_run, '--raw'], ema_run / 'model_best.pth.tar', 'state_dict'),
        'ema': ([ema_run], ema_run / 'model_best.pth.tar', 'state_dict_ema'),
        'last': ([ema_run, '--last'], ema_run / 'last.pth.tar', 'state_dict_ema'),
        'file': ([ema_run / 'checkpoint-0.pth.tar', '--use-ema'], ema_run / 'checkpoint-0.pth.tar', 'state_dict_ema'),
    }
    models = dict.fromkeys(exports, ('test_resnet', {}))
    for name, flags in MODELS.items():
        folder = train_once('--model', name, '--epochs', '1', *flags)
        exports[name] = ([folder], folder / 'model_best.pth.tar', 'state_dict')
    models['test_efficientnet'] = ('test_efficientnet', dict(bn_eps=0.1, in_chans=1, global_pool='max'))
    models['test_vit'] = ('test_vit', dict(img_size=32))

    expected = []
    for name, (argv, file, key) in exports.items():
        run([*argv, tmp_path / name])
        architecture, kwargs = models[name]
        model = timm.create_model(architecture, num_classes=3, **kwargs).eval()
        model.load_state_dict(load(file)[key])
        channels = kwargs.get('in_chans', 3)
        with torch.no_grad():
            logits = model(torch.linspace(-1, 1, 2048 * channels).reshape(2, channels, 32, 32))
        expected.append([3, ['ant', 'bee', 'cat'], logits.tolist()])
    assert logits_in_plain_timm(*(tmp_path / name for name in exports)) == expected
    assert len({str(logits) for _, _, logits in expected}) == len(exports), 'all of them differ'


def test_an_exported_folder_has_the_metrics_of_its_checkpoint(ema_run, train_once, validate, tmp_path):
    run([ema_run, tmp_path / 'ema'])
    run([ema_run, tmp_path / 'last', '--last', '--raw'])
    of_file = validate('--checkpoint', ema_run / 'model_best.pth.tar', '--use-ema')
    assert validate('--model', f'local-dir:{tmp_path / "ema"}', '--pretrained') == of_file
    assert validate('--model', f'local-dir:{tmp_path / "last"}', '--pretrained') == validate(
        '--checkpoint', ema_run / 'last.pth.tar') != of_file
    metrics = read_model(str(ema_run), use_ema=True).metrics
    assert [round(metrics['top1'], 4), round(metrics['top5'], 4), metrics['loss']] == validate(
        '--checkpoint', ema_run / 'model_best.pth.tar', '--use-ema', '--channels-last')


@pytest.mark.parametrize('name', MODELS)
def test_exported_folders_of_other_inputs_and_architectures_have_their_metrics(train_once, validate, tmp_path, name):
    folder = train_once('--model', name, '--epochs', '1', *MODELS[name])
    run([folder, tmp_path / 'exported'])
    with open(folder / 'summary.csv', newline='') as f:
        row = next(csv.DictReader(f))
    trained = [round(float(row['eval_top1']), 4), round(float(row['eval_top5']), 4), float(row['eval_loss'])]
    assert validate('--checkpoint', folder / 'last.pth.tar') == trained
    assert validate('--model', f'local-dir:{tmp_path / "exported"}', '--pretrained') == trained


def test_validate_uses_the_crop_mode_of_the_configuration(ema_run, validate, tmp_path):
    run([ema_run, tmp_path / 'exported', '--raw'])
    config = json.loads((tmp_path / 'exported' / 'config.json').read_text())
    config['pretrained_cfg']['crop_mode'] = 'squash'
    (tmp_path / 'exported' / 'config.json').write_text(json.dumps(config))
    checkpoint = ema_run / 'model_best.pth.tar'
    squashed = validate('--model', f'local-dir:{tmp_path / "exported"}', '--pretrained')
    assert squashed == validate('--checkpoint', checkpoint, '--crop-mode', 'squash') != validate(
        '--checkpoint', checkpoint)


def test_the_input_of_evaluation_is_that_of_the_configuration_and_for_a_run_that_of_training(
        ema_run, photos, results_of, tmp_path):
    run([ema_run, tmp_path / 'exported', '--raw'])
    path = tmp_path / 'exported' / 'config.json'
    config = json.loads(path.read_text())
    config['pretrained_cfg'].update(input_size=[3, 40, 40], crop_pct=0.9, test_input_size=[3, 48, 48], test_crop_pct=1.)
    path.write_text(json.dumps(config))
    model, weights = f'local-dir:{path.parent}', load(ema_run / 'model_best.pth.tar')['state_dict']
    args = dict(model=model, num_classes=3, batch_size=4)  # no --img-size
    torch.save(dict(state_dict=weights, args=args), tmp_path / 'last.pth.tar')
    for words, expected in (
            (['--model', model, '--pretrained'], (48, 1.)), (['--model', model, '--pretrained', '--use-train-size'],
                                                             (40, 0.9)),
            (['--checkpoint', path.parent / 'model.safetensors'], (48, 1.)),
            (['--checkpoint', path.parent / 'model.safetensors', '--use-train-size'], (40, 0.9)),
            (['--checkpoint', tmp_path / 'last.pth.tar'], (40, 0.9))):
        results = results_of(photos, *words)
        assert (results['img_size'], results['crop_pct']) == expected
    run([path.parent, tmp_path / 'again'])
    exported = timm.create_model(f'local-dir:{tmp_path / "again"}')
    data_config = timm.data.resolve_model_data_config(exported)
    assert (data_config['input_size'], data_config['crop_pct']) == ((3, 48, 48), 1.)


def test_a_run_from_an_exported_folder_does_not_need_it_afterwards(ema_run, photos, validate, tmp_path):
    source = tmp_path / 'source'
    run([ema_run, source])
    train_cli.main([
        str(photos), '--model', f'local-dir:{source}', '--pretrained', '--img-size', '48', '-b', '4', '-j', '0',
        '--epochs', '1', '--lr', '0.001', '--warmup-epochs', '0', '--output', str(tmp_path), '--experiment', 'tuned'])
    shutil.rmtree(source)
    saved = read_model(str(tmp_path / 'tuned'))
    assert (saved.architecture, saved.num_classes) == ('test_resnet', 3)
    run([tmp_path / 'tuned', tmp_path / 'exported'])
    result = validate('--checkpoint', tmp_path / 'tuned' / 'last.pth.tar')
    assert result[2] == saved.metrics['loss']
    assert validate('--model', f'local-dir:{tmp_path / "exported"}', '--pretrained') == result


# Weights alone

VIT = dict(img_size=32, embed_dim=32, depth=2, num_heads=2)


def write_weights(path, name, num_classes=7, **kwargs):
    model = timm.create_model(name, num_classes=num_classes, **kwargs).eval()
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize('name, kwargs', [
    ('deit_tiny_distilled_patch16_224', VIT), ('levit_128s', {}), ('efficientformer_l1', {}), ('test_resnet', {})])
def test_the_number_of_classes_is_read_from_weights_alone(tmp_path, name, kwargs):
    """Of two heads, the first counts."""
    write_weights(tmp_path / 'weights.pth', name, **kwargs)
    assert read_model(str(tmp_path / 'weights.pth'), architecture=name, model_kwargs=kwargs).num_classes == 7


def test_settings_of_weights_alone_can_be_given(tmp_path, monkeypatch, capsys, photos):
    source = tmp_path / 'weights.pth'
    model = write_weights(source, 'deit_tiny_distilled_patch16_224', **VIT)
    flags = ['--model', 'deit_tiny_distilled_patch16_224', '--model-kwargs', *(f'{k}={v}' for k, v in VIT.items())]
    run([source, tmp_path / 'counted', *flags])
    monkeypatch.setattr(saved_model, '_width', lambda *args: None)
    assert 'head.weight [7, 32] in place of [1000, 32]' in fails(capsys, source, tmp_path / 'refused', *flags)
    assert 'pos_embed [1, 6, 32]' in fails(capsys, source, tmp_path / 'refused', *flags[:3], *flags[4:],
                                           '--num-classes', 7)
    run([source, tmp_path / 'given', *flags, '--num-classes', 7])
    with torch.no_grad():
        expected = model(torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)).tolist()
    assert logits_in_plain_timm(tmp_path / 'counted', tmp_path / 'given') == [[7, list('0123456'), expected]] * 2
    capsys.readouterr()
    predict.main([str(source), str(photos / 'val'), *flags, '--num-classes', '7', '--format', 'json', '-j', '0'])
    assert {len(row['predictions']) for row in json.loads(capsys.readouterr().out)} == {5}


@pytest.mark.parametrize('task', ['classification', 'multilabel'])
def test_weights_in_a_folder_of_timm_use_its_configuration(make_saved, photos, tmp_path, capsys, task):
    first, again = tmp_path / 'first', tmp_path / 'again'
    stage(make_saved(in_chans=1, global_pool='max', options={'task': task}), first)
    run([first / 'model.safetensors', again])
    run([first, tmp_path / 'folder'])
    configs = [json.loads((folder / 'config.json').read_text()) for folder in (first, again, tmp_path / 'folder')]
    for config in configs:
        del config['pretrained_cfg']['tag']  # the run is not known any more
    assert configs[0] == configs[1] == configs[2]
    assert (configs[0].get('problem_type') == 'multi_label_classification') == (task == 'multilabel')
    expected, found = logits_in_plain_timm(first, again)
    assert found == expected
    capsys.readouterr()
    rows = []
    for model in (first / 'model.safetensors', f'local-dir:{first}'):
        predict.main([str(model), str(photos / 'val'), '--format', 'json', '-j', '0', '--device', 'cpu'])
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0] == rows[1] and {entry['class'] for entry in rows[0][0]['predictions']} == {'ant', 'bee', 'cat'}


@pytest.mark.parametrize('text, said', [
    ('{"model_type": "vit"}', 'name it with --model'),
    ('{', "config.json' is damaged"),
    ('{"architecture": "test_resnet"}', "config.json' is damaged"),
    ('{"architecture": "nothing", "pretrained_cfg": {"num_classes": 3}}', "'nothing' is none"),
])
def test_invalid_configurations_are_refused_in_one_line(make_saved, tmp_path, capsys, text, said):
    stage(make_saved(), tmp_path / 'hub')
    (tmp_path / 'hub' / 'config.json').write_text(text)
    assert said in fails(capsys, tmp_path / 'hub' / 'model.safetensors', tmp_path / 'out')


# ONNX

def test_onnx_gives_the_logits_of_plain_timm_for_every_batch_size(ema_run, tmp_path, capsys):
    onnxruntime = pytest.importorskip('onnxruntime')
    run([ema_run, tmp_path / 'out', '--raw', '--onnx'])
    assert re.search('model.onnx.*: the logits .*ONNX Runtime differ by', capsys.readouterr().out)
    content = (tmp_path / 'out' / 'model.onnx').read_bytes()
    assert b'.py' not in content and os.path.dirname(timm.__file__).encode() not in content, 'no path of this machine'
    session = onnxruntime.InferenceSession(tmp_path / 'out' / 'model.onnx', providers=['CPUExecutionProvider'])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ['pixel_values', 'logits']
    model = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    for count in (1, 4):
        input = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = model(input).numpy()
        found = session.run(None, {'pixel_values': input.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_failures_of_the_onnx_export_are_one_line_and_leave_no_file(make_saved, tmp_path, capsys, monkeypatch):
    stage(make_saved(), tmp_path / 'hub')

    def export_another(model, *args, **kwargs):
        raise RuntimeError('no such\noperator')
    monkeypatch.setattr(torch.onnx, 'export', export_another)
    said = fails(capsys, tmp_path / 'hub', tmp_path / 'out', '--onnx')
    assert "--onnx: torch cannot export 'test_resnet' (export without --onnx): no such operator" in said
    monkeypatch.setattr(torch.onnx, 'export', lambda *args, **kwargs: None)
    monkeypatch.setattr(onnx_export, '_remove_traces', lambda path: None)
    monkeypatch.setattr(onnx_export, '_difference', export_another)
    said = fails(capsys, tmp_path / 'hub', tmp_path / 'out', '--onnx')
    assert "ONNX Runtime cannot run 'test_resnet' (export without --onnx): no such operator" in said
    for difference in (0.01, float('nan')):
        monkeypatch.setattr(onnx_export, '_difference', lambda *args, difference=difference: difference)
        assert f"differ from those of 'test_resnet' by {difference}" in fails(
            capsys, tmp_path / 'hub', tmp_path / 'out', '--onnx')
    monkeypatch.setattr(onnx_export.importlib.util, 'find_spec', lambda name: None)
    assert "--onnx needs onnx: pip install 'agmax_timm[onnx]'" in fails(
        capsys, tmp_path / 'hub', tmp_path / 'out', '--onnx')
    assert [path.name for path in tmp_path.iterdir()] == ['hub']


# Refused

def test_files_and_folders_with_files_are_not_overwritten(ema_run, tmp_path, capsys):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine').write_text('mine')
    for name in ('file', 'full'):
        assert str(tmp_path / name) in fails(capsys, ema_run, tmp_path / name)
    assert (tmp_path / 'file').read_text() == 'mine'
    assert [path.name for path in (tmp_path / 'full').iterdir()] == ['mine']
    (tmp_path / 'empty').mkdir()
    run([ema_run, tmp_path / 'empty'])
    assert {'config.json', 'model.safetensors'} <= {path.name for path in (tmp_path / 'empty').iterdir()}


@pytest.mark.parametrize('argv, words', [
    (['nowhere'], ['no such', 'nowhere']),
    (['{run}', '--average', '9'], ['--average 9', '4 checkpoints']),
    (['{run}', '--average', '0'], ['--average', '0']),
    (['{run}', '--average', '-1'], ['--average', '-1']),
    (['{run}', '--average', 'two'], ['--average', 'two']),
    (['{run}', '--average', '2', '--last'], ['--average 2', '--last']),
    (['{run}/last.pth.tar', '--average', '2'], ['--average 2', 'last.pth.tar']),
    (['{run}/last.pth.tar', '--last'], ['--last', 'last.pth.tar']),
    (['{run}', '--model', 'nothing'], ['nothing', '--model']),
    (['{run}', '--model', 'test_vit'], ['test_vit', 'missing', 'cls_token']),
    (['{run}/args.yaml'], ['args.yaml']),
])
def test_invalid_arguments_are_refused_in_one_line(ema_run, tmp_path, capsys, argv, words):
    source, *flags = argv
    message = fails(capsys, source.format(run=ema_run), tmp_path / 'out', *flags)
    assert all(word in message for word in words), message
    assert not (tmp_path / 'out').exists()
