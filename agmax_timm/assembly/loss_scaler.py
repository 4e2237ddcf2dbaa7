"""timm's loss scaler in two halves: the backward pass of a batch, and the update."""
from collections.abc import Iterable

import torch
from timm.utils import NativeScaler, dispatch_clip_grad


class LossScaler(NativeScaler):
    """timm.utils.NativeScaler with separate calls for the backward pass and the update.

    NativeScaler does both in one call. The host would have to read the losses before that call, and the device would
    be idle meanwhile. Here the host reads them between the two calls. The checkpoint state is that of NativeScaler.
    """

    def backward(self, loss: torch.Tensor, create_graph: bool = False) -> None:
        """Launch the backward pass of the scaled loss."""
        self._scaler.scale(loss).backward(create_graph=create_graph)

    def step(
            self,
            optimizer: torch.optim.Optimizer,
            clip_grad: float | None = None,
            clip_mode: str = 'norm',
            parameters: Iterable[torch.nn.Parameter] | None = None,
    ) -> bool:
        """Unscale and clip the gradients, step if they are finite, and update the scale. Waits for the device.

        Args:
            clip_grad, clip_mode, parameters: Arguments of timm.utils.dispatch_clip_grad; None for no clipping.

        Returns:
            Whether the optimizer stepped. If a gradient is NaN or infinite, it does not, and the scale is lowered.
        """
        self._scaler.unscale_(optimizer)
        if clip_grad is not None:
            dispatch_clip_grad(parameters, value=clip_grad, mode=clip_mode)
        # The step reads the same flags. Reading them after the step would wait for the optimizer.
        finite = not any(flag.item() for flag in self._scaler._found_inf_per_device(optimizer).values())
        self._scaler.step(optimizer)
        self._scaler.update()
        return finite

    @property
    def scale(self) -> float:
        """Present factor of the loss. Waits for the device."""
        return self._scaler.get_scale()
