"""torch.compile against eager: one graph, compiled once, and CUDA graphs (reduce-overhead)."""
import pytest
import torch
from torch._dynamo.utils import counters

from agmax_timm.options.parse import parse_train_args

from .updates import BFLOAT16, batches, distance, make_step, make_task, options, train, train_and_read, weights


@pytest.fixture(autouse=True)
def nothing_compiled(settings):
    torch._dynamo.reset()
    counters.clear()


def slow_sgd(task):
    return torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)


@pytest.mark.parametrize('case, tolerance', [({}, 1e-3), (BFLOAT16, 5e-2)], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', ['convolutions', 'transformer'])
def test_compiled_tasks_have_the_same_losses_in_one_graph(device, record_property, kind, case, tolerance):
    on_gpu = device.type == 'cuda'
    name = 'test_vit' if kind == 'transformer' else 'resnet18' if on_gpu else 'test_resnet'
    backend = dict(backend='inductor' if on_gpu else 'aot_eager')
    eager, compiled = make_task(device, name), make_task(device, name)
    compiled.setup_ema()
    compiled.compile(**backend)
    compiled.compile_ema(**backend)
    data = batches(device, 4)
    expected, found = [train_and_read(make_step(task, device, options(**case), slow_sgd(task)), data)
                       for task in (eager, compiled)]
    record_property('loss, eager', expected['loss'])
    record_property('loss, compiled', found['loss'])
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert not counters['graph_break']
    for again in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=again):
            for ema in (False, True):
                with torch.inference_mode():
                    compiled.get_eval_model(ema=ema).eval()(data[0][0])
            train(make_step(compiled, device, options(**case)), data[:2])


@pytest.mark.parametrize('accum_steps', [1, 2])
def test_cuda_graphs_are_refused_or_give_the_same_weights(device, record_property, accum_steps):
    flags = f'--agmax --torchcompile --torchcompile-mode reduce-overhead --grad-accum-steps {accum_steps}'
    try:
        parse_train_args(['folder', *flags.split()])
    except SystemExit:
        record_property('refused', True)
        assert accum_steps > 1
        return
    if device.type == 'cpu' and accum_steps > 1:
        pytest.skip('has no CPU form: a CPU has no CUDA graphs')
    eager, compiled = make_task(device, 'test_vit'), make_task(device, 'test_vit')
    compiled.compile(**(dict(mode='reduce-overhead') if device.type == 'cuda' else dict(backend='aot_eager')))
    for task in (eager, compiled):
        train(make_step(task, device, options(grad_accum_steps=accum_steps), slow_sgd(task)), batches(device, 12))
    error = distance(weights(compiled), weights(eager))
    record_property('relative distance of the weights', error)
    assert error < 1e-3
