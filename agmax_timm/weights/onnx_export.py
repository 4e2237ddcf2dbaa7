"""Export of a classifier to ONNX, for any number of images, checked against ONNX Runtime."""
import importlib.util
import math
import os

import torch
from timm.layers import set_layer_config

from ..base.silence import silenced
from .hub_error import HubError, as_hub_error
from .saved_model import SavedModel

FILE = 'model.onnx'
# Batch sizes to compare. The first is that of the export.
_BATCHES = (2, 1, 5)
# Largest accepted difference of a logit, relative to the largest logit. Kernels differ in the order of their sums.
_TOLERANCE = 1e-3
# A file of ONNX holds 2 GB at most. Tensors of larger models go into a second file.
_MOST_BYTES = 1.8e9


def require_onnx() -> None:
    """Raise HubError, with the remedy, if a package of the extra `onnx` is missing."""
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        if importlib.util.find_spec(package) is None:
            raise HubError(f"--onnx needs {package}: pip install 'agmax_timm[onnx]'")


def write_onnx(saved: SavedModel, folder: str) -> float:
    """Write model.onnx. Its input is pixel_values [N, C, H, W], normalised as in config.json; its output logits [N, K].

    Args:
        folder: An existing folder; weights of more than 2 GB get a second file beside the model.

    Returns:
        The largest difference between the logits of ONNX Runtime and of timm, relative to the largest logit.

    Raises:
        HubError: Torch cannot export the model, or ONNX Runtime gives other logits.
    """
    with silenced(), set_layer_config(exportable=True):
        model = saved.create_model()
    generator = torch.Generator().manual_seed(0)
    inputs = {count: torch.randn(count, *saved.data_config['input_size'], generator=generator) for count in _BATCHES}
    path = os.path.join(folder, FILE)
    refused = f"--onnx: torch cannot export '{saved.architecture}' (export without --onnx)"
    with as_hub_error(refused, Exception), silenced():
        torch.onnx.export(
            model, (inputs[_BATCHES[0]],), path, input_names=['pixel_values'], output_names=['logits'],
            dynamic_shapes=({0: torch.export.Dim('batch')},), dynamo=True, verbose=False,
            external_data=sum(value.nbytes for value in saved.state_dict.values()) > _MOST_BYTES)
        _remove_traces(path)
    with as_hub_error(f"--onnx: ONNX Runtime cannot run '{saved.architecture}' (export without --onnx)", Exception):
        difference = _difference(path, model, inputs)
    if not difference <= _TOLERANCE:
        raise HubError(f"--onnx: the logits of ONNX Runtime differ from those of '{saved.architecture}' by "
                       f'{difference:g} of the largest, more than {_TOLERANCE:g}: export without --onnx')
    return difference


def _remove_traces(path: str) -> None:
    """Remove the stack traces that torch keeps of every node, with the paths of this machine."""
    import onnx
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)


@torch.inference_mode()
def _difference(path: str, model: torch.nn.Module, inputs: dict[int, torch.Tensor]) -> float:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    differences = []
    for input in inputs.values():
        expected = model(input)
        found = torch.from_numpy(session.run(['logits'], {'pixel_values': input.numpy()})[0])
        differences.append(((found - expected).abs().max() / expected.abs().max()).item())
    return max(differences, key=lambda difference: math.inf if math.isnan(difference) else difference)
