"""Comparison of tensors with those of a model: missing, unexpected, and of other shapes."""
from torch import Tensor, nn

from ..base.errors import CheckpointError
from ..base.text import listed


def check_fit(
        state_dict: dict[str, Tensor],
        model: nn.Module,
        adapted: tuple[str, ...] = (),
        source: str = '',
) -> None:
    """Raise CheckpointError unless tensors are exactly those of a model. See misfits for the arguments."""
    problems = misfits(state_dict, model, adapted)
    if problems:
        architecture = getattr(model, 'pretrained_cfg', {}).get('architecture') or type(model).__name__
        subject = f'{source!r} ' if source else ''
        raise CheckpointError(f"{subject}does not fit '{architecture}': {problems}")


def misfits(state_dict: dict[str, Tensor], model: nn.Module, adapted: tuple[str, ...] = ()) -> str:
    """Return how tensors differ from those of a model, '' if they fit exactly.

    Args:
        adapted: Prefixes of tensors that are not compared.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own and not name.startswith(adapted)]
    shapes = [f'{name} {list(tensor.shape)} in place of {list(own[name].shape)}' for name, tensor in state_dict.items()
              if name in own and tensor.shape != own[name].shape and not name.startswith(adapted)]
    named = dict(missing=missing, unexpected=unexpected, shapes=shapes)
    return '; '.join(f'{problem} {listed(names, 3)}' for problem, names in named.items() if names)


def adapted_modules(model: nn.Module, keys: tuple[str, ...] = ('first_conv', 'classifier')) -> tuple[str, ...]:
    """Return the prefixes of the tensors that timm adapts to the model: those of stem and head."""
    config = getattr(model, 'pretrained_cfg', {})
    modules: list[str] = []
    for key in keys:
        value = config.get(key) or ()
        modules += [value] if isinstance(value, str) else value
    return tuple(f'{module}.' for module in modules)
