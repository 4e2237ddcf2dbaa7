"""Benchmarks in their quick form: what they measure, how much of it, and what they write. Speed is not tested."""
import csv
import json
import os
import re
import shlex
import time
from collections import Counter
from functools import partial, wraps
from pathlib import Path

import numpy
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from agmax_timm.bench import command, memory, network, objective, options, output, passes, pipelines, processes
from agmax_timm.commands import train as train_cli
from agmax_timm.data.augmentation.mixup import TwoViewCollate
from agmax_timm.data.sources.folder import FolderReader
from agmax_timm.task import AgMaxTask
from tests.helpers.paths import REPOSITORY

pytest.importorskip('cv2')
simplejpeg = pytest.importorskip('simplejpeg')
FastCollate = pytest.importorskip('agmax_timm.data.arrays.collate').FastCollate

ONE, TIMM, FAST = 'timm, one view', 'two views, timm', 'two views, fast'
IN_MEMORY = [f'{TIMM}, in memory', f'{FAST}, in memory']


@pytest.fixture
def measured(tmp_path, capsys):
    """Function: the rows of a benchmark in its quick form, read from its CSV file. Its table and chart are checked."""
    def run(name, *argv):
        command.main([name, *map(str, argv), '--quick', '--output', str(tmp_path / 'out')])
        with open(tmp_path / 'out' / f'{name}.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        machine, caption, header, *lines = capsys.readouterr().out.splitlines()
        assert f'torch {torch.__version__.split("+")[0]}' in machine and {row['machine'] for row in rows} == {machine}
        assert caption.startswith('ratio: ')
        assert header.split() == ' '.join([*rows[0]][:-1]).split() and len(lines) == len(rows)
        with Image.open(tmp_path / 'out' / f'{name}.png') as picture:
            assert picture.width > picture.height / 3
        for row in rows:
            assert 0 < float(row['least']) <= float(row['ratio']) <= float(row['most'])
        return rows
    return run


@pytest.fixture
def done(monkeypatch):
    """The work of each configuration in a pass, by its name: calls of decoders, readers, steps and collates."""
    counts, done = Counter(), {}

    def count(owner, name, what):
        function = getattr(owner, name)

        @wraps(function)
        def counted(*args, **kwargs):
            counts[what] += 1
            return function(*args, **kwargs)
        monkeypatch.setattr(owner, name, counted)

    def recorded(configurations, *args, **kwargs):
        def record(name, run):
            before = counts.copy()
            result = run()
            work = dict(counts - before)
            assert done.setdefault(name, work) == work, 'each pass does the same work'
            return result
        return interleaved({name: partial(record, name, run) for name, run in configurations.items()}, *args, **kwargs)

    interleaved = passes.interleaved
    monkeypatch.setattr(passes, 'interleaved', recorded)
    for owner, name, what in (
            (Image, 'open', 'PIL'), (simplejpeg, 'decode_jpeg', 'simplejpeg'), (network.Update, '__call__', 'steps'),
            (AgMaxTask, 'forward', 'AgMax'), (timm.data.FastCollateMixup, '__call__', 'MixUp of timm'),
            (TwoViewCollate, '__call__', 'MixUp of two views'), (FastCollate, '__call__', 'MixUp of arrays'),
            (ReaderImageFolder, '__init__', 'index of timm'), (FolderReader, '__init__', 'index')):
        count(owner, name, what)
    return done


@pytest.mark.slow
def test_the_work_that_training_measures(photos, measured, done):
    """Eight images in batches of four, in this process. `images decoded` decodes as the fast backend does."""
    measured('training', photos, '--device', 'cpu', '-j', 0)
    decoded, steps = {TIMM: {'PIL': 8}, FAST: {'simplejpeg': 8}}, {'steps': 2, 'AgMax': 2}
    collated = {TIMM: {}, FAST: {'MixUp of arrays': 2}}
    assert {name: {key: value for key, value in work.items() if 'views' not in key} for name, work in done.items()} == {
        'steps alone': steps, 'images decoded': decoded[FAST],
        **{name: {**decoded[name], **collated[name]} for name in (TIMM, FAST)},
        **{f'training, {name}': {**decoded[name], **collated[name], **steps} for name in (TIMM, FAST)}}


@pytest.mark.slow
def test_the_work_that_loader_measures(photos, measured, done):
    measured('loader', photos, '--memory', '--recipes', 'standard')
    assert {name: {key: work[key] for key in ('PIL', 'simplejpeg') if key in work} for name, work in done.items()} == {
        ONE: {'PIL': 8}, TIMM: {'PIL': 8}, FAST: {'simplejpeg': 8}, **dict.fromkeys(IN_MEMORY, {})}


@pytest.mark.slow
def test_the_work_that_step_collate_and_index_measure(photos, measured, done):
    measured('step', '--device', 'cpu')
    measured('collate')
    measured('index', photos)
    assert done == {
        'cross-entropy': {'steps': 1}, 'AgMax': {'steps': 1, 'AgMax': 1}, 'cross-entropy, one view': {'steps': 1},
        "timm's, once per view": {'MixUp of timm': 2}, TIMM: {'MixUp of two views': 1}, FAST: {'MixUp of arrays': 1},
        'timm': {'index of timm': 1}, 'agmax_timm': {'index': 1}}


def columns(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def test_loader_has_rows_for_all_recipes_and_loaders(photos, measured):
    rows = measured('loader', photos)
    assert columns(rows, 'recipe', 'loader', 'views') == [
        (recipe, name, views) for recipe in ('standard', 'nojitter', 'aa', 'rand', 'mixup')
        for name, views in ((ONE, '8'), (TIMM, '16'), (FAST, '16'))]
    assert {row['ratio'] for row in rows if row['loader'] == ONE} == {'1.0'}


@pytest.mark.slow
def test_loader_in_memory_with_workers(photos, measured):
    rows = measured('loader', photos, '--memory', '-j', 1, '--recipes', 'mixup', '--images', 100, '-b', 6)
    assert columns(rows, 'loader', 'views') == [  # of 12 images
        (ONE, '12'), *((name, '24') for name in (TIMM, FAST, *IN_MEMORY))]
    assert not torch.isnan(torch.tensor([float(row['CPU s/1000 views']) for row in rows])).any()


def test_small_has_rows_for_all_recipes_and_loaders(photos, measured):
    rows = measured('small', photos)
    assert columns(rows, 'recipe', 'loader', 'views') == [
        (recipe, name, views) for recipe in ('cropflip', 'aa')
        for name, views in ((ONE, '8'), *((name, '16') for name in IN_MEMORY))]


def test_collate_has_rows_for_all_collate_functions(measured):
    assert columns(measured('collate'), 'collate', 'views') == [
        ("timm's, once per view", '8'), (TIMM, '8'), (FAST, '8')]


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--amp', '--channels-last']])
def test_step_has_rows_for_cross_entropy_and_agmax(measured, flags):
    rows = measured('step', '--device', 'cpu', *flags)
    assert columns(rows, 'step', 'views') == [('cross-entropy', '8'), ('AgMax', '8'), ('cross-entropy, one view', '4')]


def test_step_compiles_a_graph_for_each_number_of_views(monkeypatch):
    """A graph for any number of views would be slower than that of AgMax, which is for one number."""
    graphs = []

    def backend(graph, inputs):
        (views,) = (len(one) for one in inputs if isinstance(one, torch.Tensor) and one.ndim == 4)
        graphs.append((views, any(isinstance(one, torch.SymInt) for one in inputs)))
        return graph.forward
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))  # test_resnet takes seconds
    monkeypatch.setattr(network, '_create_model', lambda *args: model)
    monkeypatch.setattr(network, '_create_task', lambda net, model: AgMaxTask(model, num_classes=3, verbose=False))
    torch.compiler.reset()
    network.step(4, 3, 1, 1, torchcompile=True, img_size=32, device='cpu')
    torch.compiler.reset()
    assert graphs == [(8, False), (4, False)]


def test_objective_has_rows_for_all_settings(measured):
    rows = measured('objective')
    assert [row['batch and confidence'] for row in rows] == [
        f'4 images, 3 classes, p(true) {confidence}' for confidence in (.4, .77, .95)]


def gradients_by_formula(images, classes, confidence, seed):
    """The gradients of the objective at synthetic logits, by their formulas in numpy, and these logits."""
    z1, z2, target = objective.synthetic_logits(images, classes, confidence, seed)
    logits = [z1.numpy(), z2.numpy(), (z1 + z2).numpy() / 2]
    softmax = [numpy.exp(z) / numpy.exp(z).sum(-1, keepdims=True) for z in logits]
    true_class = numpy.eye(classes)[target]
    assert numpy.mean([(p * true_class).sum(-1) for p in softmax[:2]]) == pytest.approx(confidence)

    def through_softmax(p, gradient):
        return p * (gradient - (p * gradient).sum(-1, keepdims=True))

    plain = numpy.stack([p - true_class for p in softmax[:2]]) / (2 * images)
    entropy = numpy.stack([through_softmax(p, numpy.log(p.mean(0))) for p in softmax[:2]]) / (3 * images)
    distance = numpy.stack([through_softmax(p, numpy.sign(p - softmax[2])) for p in softmax[:2]]) * 2 / images / classes
    norm = numpy.linalg.norm
    return {
        'entropy': norm(entropy) / norm(plain),
        'cosine': (entropy * plain).sum() / norm(entropy) / norm(plain),
        'divergence': norm(distance) / norm(plain),
        'nats': 4 * numpy.mean([abs(p - softmax[2]) for p in softmax[:2]])}, (z1, z2, target)


def test_gradients_of_the_objective_equal_their_formulas():
    expected, logits = gradients_by_formula(6, 4, .6, seed=0)
    assert objective.gradients(*logits) == pytest.approx(expected, rel=1e-12)


def test_the_table_of_the_method_card_equals_the_formulas():
    """Only rows of up to 100 classes are compared. The others take seconds."""
    text = (REPOSITORY / 'docs' / 'agmax.md').read_text().split('| its cosine to the cross-entropy |')[1]
    lines = text.split('\n\n')[0].splitlines()[2:]
    rows = [[float(number) for number in re.findall(r'-?[\d.]+', line)] for line in lines]
    assert [(int(images), int(classes), p) for images, classes, p, *_ in rows] == objective.SETTINGS
    for images, classes, confidence, mean, least, most, cosine, divergence in rows:
        if classes <= 100:
            found = [gradients_by_formula(int(images), int(classes), confidence, seed)[0] for seed in range(5)]
            entropy = [one['entropy'] for one in found]
            for shown, value in ((mean, numpy.mean(entropy)), (least, min(entropy)), (most, max(entropy)),
                                 (cosine, numpy.mean([one['cosine'] for one in found])),
                                 (divergence, numpy.mean([one['divergence'] for one in found]))):
                digits = len(f'{shown}'.partition('.')[2])
                assert round(value, digits) == shown, (images, classes, value, shown)


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--recipe', 'mixup']])
def test_training_has_rows_for_all_configurations(photos, measured, flags):
    rows = measured('training', photos, '--device', 'cpu', '-j', 1, *flags)
    assert columns(rows, 'of', 'views') == [(name, '16') for name in (
        'steps alone', 'images decoded', TIMM, FAST, f'training, {TIMM}', f'training, {FAST}')]
    for row in rows[-2:]:
        assert float(row['waits %']) == pytest.approx(100 - 100 * float(row['ratio']))


@pytest.mark.parametrize('flags, pin_memory, said', [
    ([], None, 'memory not pinned'), (['--pin-mem'], True, 'pinned memory'),
    (['--no-pin-mem'], False, 'memory not pinned')])
def test_training_pins_memory_on_request(photos, monkeypatch, flags, pin_memory, said):
    asked = []
    monkeypatch.setattr(network, 'build_prefetched', lambda *args, **kwargs: (
        asked.append(kwargs['pin_memory']), build_prefetched(*args, **{**kwargs, 'pin_memory': False}))[1])
    monkeypatch.setattr(passes, 'interleaved', lambda configurations, repeats: {
        name: [passes.Pass(1., 1., 1)] for name in configurations})
    build_prefetched = pipelines.build_prefetched
    args = options.parse(['training', str(photos), '--device', 'cpu', '-j', '0', '--quick', *flags])
    assert f', 0 workers, {said}; cpu' in network.training(**args.arguments).caption
    assert asked == [pin_memory] * 2


@pytest.mark.slow
def test_waiting_for_a_slow_loader_is_measured(photos, measured, monkeypatch):
    """Each batch of views is delayed by a quarter of a second."""
    def late(*args, **kwargs):
        loader = build_prefetched(*args, **kwargs)
        transform = loader.dataset.transform
        loader.dataset.transform = lambda image: (time.sleep(.06), transform(image))[1]
        return loader
    build_prefetched = network.build_prefetched
    monkeypatch.setattr(network, 'build_prefetched', late)
    rows = measured('training', photos, '--device', 'cpu', '-j', 0)
    assert min(float(row['waits %']) for row in rows[-2:]) > 50


_SCRIPT = """
import json, sys
with open(sys.argv[0] + '.json', 'w') as file:
    json.dump(sys.argv[1:], file)
"""


@pytest.mark.slow
def test_run_starts_both_scripts_with_their_options(photos, measured, tmp_path):
    """timm's script is replaced by one that records its arguments. Of 12 images, it would leave out a batch of 4."""
    script = tmp_path / 'script.py'
    script.write_text(_SCRIPT)
    rows = measured('run', photos, '--timm-script', script, '--epochs', 1, '-j', 0, '--device', 'cpu',
                    '--flags', '--num-classes 3 --img-size 32 --log-interval 1000')
    assert columns(rows, 'run', 'views') == [("timm's script", '16'), ('train.py --agmax', '24')]
    per_view = [float(row['s']) / int(row['views']) for row in rows]
    assert float(rows[1]['ratio']) == pytest.approx(per_view[1] / per_view[0])
    told = json.loads(Path(f'{script}.json').read_text())
    assert told[:2] == ['--data-dir', str(photos)]
    assert {'--model=test_resnet', '--batch-size=8', '--epochs=2', '--val-interval=2', '--workers=0', '--device=cpu',
            '--train-split=train', '--num-classes', '--img-size'} <= set(told)


@pytest.mark.slow
@pytest.mark.parametrize('source', ['count', 'folder'])
def test_index_has_rows_for_both_readers(measured, photos, source):
    rows = measured('index', *([photos] if source == 'folder' else []))
    count = '12' if source == 'folder' else '20'
    assert columns(rows, 'index', 'images') == [('timm', count), ('agmax_timm', count)]


@pytest.mark.slow
def test_memory_states_peaks_and_growth(photos, measured, monkeypatch):
    """The epochs run in this process, which is faster. Their peaks are replaced by known ones."""
    def read(argv, mark):
        assert argv[:2] == ['-m', 'agmax_timm.bench.memory'] and mark == '"peaks"'
        found = memory.read(**json.loads(argv[-1]))
        assert len(found['peaks']) == 3 and min(found['peaks']) > 10 and found['kind'] in ('memory', 'RSS')
        peaks = [100., 150., 170.] if json.loads(argv[-1])['name'] == FAST else [100., 85., 70.]
        return json.dumps(dict(found, kind='memory', peaks=peaks))
    monkeypatch.setattr(processes, 'wait_for', read)
    rows = measured('memory', photos, '-j', 1)
    assert columns(rows, 'loader', 'views', 'peak memory MiB', 'ratio', 'growth MiB/epoch') == [
        (ONE, '8', '100.0', '1.0', '-15.0'), (f'{ONE}, twice the batch', '8', '100.0', '1.0', '-15.0'),
        (TIMM, '16', '100.0', '1.0', '-15.0'),
        (FAST, '16', '170.0', '1.7', '20.0')]


@pytest.mark.slow
def test_memory_is_read_in_a_process_of_its_own(photos):
    found = memory.read_epochs(
        name=ONE, root=str(photos), size=(3, 32, 32), batch_size=4, workers=0, recipe={}, epochs=2)
    assert found['views'] == 12 and len(found['peaks']) == 2


def test_startup_has_a_row_for_each_command(measured, monkeypatch):
    """The processes only print what the real ones print."""
    says = f"import time; print('{processes.FIRST_STEP}   0/20]', flush=True); time.sleep(100)"
    monkeypatch.setattr(processes, 'COMMANDS', {
        'import timm': (['-c', ''], ''), 'first training step': (['-c', says], processes.FIRST_STEP)})
    rows = measured('startup')
    assert columns(rows, 'command') == [('import timm',), ('first training step',)]
    assert float(rows[1]['s']) < 50


def test_the_log_of_a_run_shows_its_first_step(tmp_path, caplog):
    train_cli.main([*processes.FLAGS, '--output', str(tmp_path), '--val-split', ''])
    lines = [record.getMessage() for record in caplog.records if processes.FIRST_STEP in record.getMessage()]
    assert '0/20' in lines[0]


def test_a_failed_process_is_reported_by_its_last_line():
    with pytest.raises(ValueError, match='ended: ValueError: too few'):
        processes.wait_for(['-c', 'print("one"); raise ValueError("too few")'], 'never')
    with pytest.raises(ValueError, match='ended: ValueError: too few'):
        processes.wait_for(['-c', 'raise ValueError("too few")'], '')
    with pytest.raises(ValueError, match='ended: one'):
        processes.wait_for(['-c', 'print("one")'], 'never')
    assert processes.wait_for(['-c', 'print("one")'], '') == 'one\n'


@pytest.mark.parametrize('argv, message', [
    (['loader', '/no/such/folder'], 'bench: error: no such folder'),
    (['small', '/no/such/folder'], 'bench: error: no such folder'),
    (['memory', '/no/such/folder'], 'bench: error: no such folder'),
    (['index', '/no/such/folder'], 'bench: error: no such folder'),
    (['index', '0'], 'bench: error: DIR_OR_COUNT must be'),
    (['loader', 'PHOTOS', '--recipes', 'jitter'], "loader: error: argument --recipes: invalid choice: 'jitter'"),
    (['loader', 'PHOTOS', '--images', '0'], 'loader: error: --images must be 1 or more, got 0'),
    (['loader', 'PHOTOS', '-b', '20', '--quick'], 'bench: error: batch_size 20 .* use 8 or less'),
    (['loader', 'PHOTOS', '-b', '3', '--recipes', 'mixup', '--quick'], 'bench: error: mixup needs an even'),
    (['step', '--model', 'resnet_fifty'], "bench: error: --model 'resnet_fifty': timm has no such model"),
    (['step', '--device', 'abacus', '--quick'], "bench: error: --device 'abacus': "),
    (['training', '/no/such/folder'], 'bench: error: no such folder'),
    (['training', 'PHOTOS', '--model', 'resnet_fifty', '--quick'], "bench: error: --model 'resnet_fifty': timm"),
    (['run', '/no/such/folder', '--timm-script', __file__], 'bench: error: no such folder'),
    (['run', 'PHOTOS', '--timm-script', '/no/script.py'], "bench: error: --timm-script '/no/script.py' is not a file"),
    (['run', 'PHOTOS', '--timm-script', 'SCRIPT', '-b', '7', '--quick'],
     "bench: error: --batch-size 7: 12 images are no batch of 14 for timm's script: use 6 or less"),
    (['run', 'PHOTOS', '--timm-script', 'SCRIPT', '--quick'],
     'bench: error: a process of python .* ended: unknown flag'),
    (['step', '--model', 'vit_tiny_patch16_224', '--quick', '--device', 'cpu'],
     "bench: error: --model 'vit_tiny_patch16_224', --img-size 32: "),
    ([], 'bench: error: the following arguments are required: COMMAND'),
])
def test_errors_are_one_line(argv, message, photos, tmp_path, capsys):
    script = tmp_path / 'script.py'
    script.write_text('raise SystemExit("unknown flag")')
    places = {'PHOTOS': str(photos), 'SCRIPT': str(script)}
    with pytest.raises(SystemExit) as caught:
        command.main([places.get(word, word) for word in argv])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and len(lines) == 1
    assert re.search(message, lines[0])


def test_quick_keeps_options_that_are_given():
    args = options.parse(['loader', 'DIR', '--quick', '--img-size', '48'])
    assert (args.img_size, args.images, args.repeats) == (48, 8, 1)


def test_passes_are_interleaved_and_compared_within_a_repetition(monkeypatch):
    clock, calls = [0.], []
    monkeypatch.setattr(passes.time, 'perf_counter', lambda: clock[0])

    def work(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds * (1 + len(calls) // 2)  # a machine that gets slower, alike for all of a repetition
            return 10
        return run
    found = passes.interleaved({'a': work('a', 2.), 'b': work('b', 2.)}, 8)
    assert calls[:2] == ['a', 'b']
    rounds = [''.join(calls[2 * i:2 * i + 2]) for i in range(1, 9)]
    assert set(rounds) == {'ab', 'ba'}
    pairs = [passes.rate(b) / passes.rate(a) for a, b in zip(found['a'], found['b'])]
    summary = passes.ratios(found, 'b', 'a', passes.rate)
    assert summary['least'] == min(pairs) and summary['most'] == max(pairs)
    assert sorted(pairs)[3] <= summary['ratio'] <= sorted(pairs)[4]


def test_cpu_seconds_count_children_that_have_ended():
    before = passes.cpu_seconds()
    assert os.system('python3 -c "while __import__(\'time\').process_time() < .3: pass"') == 0
    assert passes.cpu_seconds() - before > .25


def test_table_is_aligned():
    rows = [dict(name='a', ms=1234.5, ratio=1., none=None), dict(name='long', ms=.01234, ratio=10., none=2)]
    assert output.table(rows).splitlines() == [
        'name      ms  ratio  none',
        'a       1234   1.00     -',
        'long  0.0123  10.00     2']


DOCUMENTS = (REPOSITORY / 'README.md', *REPOSITORY.glob('docs/*.md'))
COMMANDS = [found for path in DOCUMENTS
            for found in re.findall(r'^(?:\w+=\d+ )?python -m agmax_timm\.bench (.+)$', path.read_text(), re.M)]


@pytest.mark.parametrize('line', COMMANDS)
def test_commands_of_the_documents_parse(line):
    options.parse(shlex.split(line))


def test_every_command_is_documented():
    assert {line.split()[0] for line in COMMANDS} == {
        'loader', 'small', 'collate', 'step', 'objective', 'training', 'run', 'memory', 'startup', 'index'}


def test_the_chart_has_a_heading_for_each_recipe(tmp_path, monkeypatch):
    pyplot = pytest.importorskip('matplotlib.figure')
    shown = pyplot.Figure()
    monkeypatch.setattr(output, 'save_figure', lambda path, draw, **size: draw(shown))
    rows = [dict(recipe=recipe, loader=loader, views=8, ratio=ratio, least=ratio - .5, most=ratio + 1, extra=None)
            for recipe in ('standard', 'aa') for loader, ratio in ((ONE, 1.), (FAST, 3.))]
    output.save(output.Result('a caption', rows), str(tmp_path), 'loader', 'a machine')
    (axes,) = shown.axes
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == ['standard', ONE, FAST, 'aa', ONE, FAST]
    assert [label.get_fontweight() for label in labels] == ['bold', 'normal', 'normal'] * 2
    assert [bar.get_width() for bar in axes.patches] == [1, 3, 1, 3]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[:2] == colours[2:] and colours[0] != colours[1]
    tops = [bar.get_y() for bar in axes.patches]
    assert tops == sorted(tops) and axes.get_ylim()[0] > axes.get_ylim()[1]
