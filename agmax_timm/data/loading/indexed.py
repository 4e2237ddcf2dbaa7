"""A training loader that says which images a batch has, and how they are mixed."""
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.mixup import mixup_target

from ...base.wrapping import Wrapper, passed_on


class IndexedLoader(Wrapper):
    """A loader of batches (input, target, indices, lam) for AgMaxMemoryTask.

    indices [B] are those of the images in the data set, on the CPU. lam [B] is the weight of each image in its mix,
    None without mixup.

    Args:
        loader: Loader of one view. With mixup, it has targets of LambdaCollate or LambdaMixup.
        recorder: ResumableLoader inside it, which records the indices of its batches.
        mixup: num_classes and label_smoothing of the soft targets, or None.
    """
    wraps = 'loader'
    mixup_enabled = passed_on('loader', 'mixup_enabled')

    def __init__(self, loader: Any, recorder: Any, mixup: dict[str, Any] | None = None):
        self.loader = loader
        self.recorder = recorder
        self.mixup = mixup

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        lam = None
        for number, (input, target) in enumerate(self.loader, self.recorder.first_batch):
            # With scheduled resolutions an index comes with the size of its image.
            indices = [index[0] if isinstance(index, tuple) else index for index in self.recorder.indices(number)]
            if self.mixup is not None:
                target, lam = target[:, 0].long(), target[:, 1]
                target = mixup_target(target, self.mixup['num_classes'], lam[:, None], self.mixup['label_smoothing'])
            # A copy from pinned memory does not block this process.
            yield input, target, torch.tensor(indices, pin_memory=target.is_cuda), lam
