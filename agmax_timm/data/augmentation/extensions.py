"""What our training loaders add to timm's."""
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoaderExtensions:
    """Arguments of create_train_loader that timm.data.create_loader lacks. create_two_view_loader describes them."""
    two_views: bool = False
    mixup: dict[str, Any] | None = None
    cutout: int = 0
    lighting: float = 0.
    train_crop_mode: str | None = None
    augment_backend: str = 'auto'
    image_memory: str = '0'
    channels_last: bool = False
    lambdas: bool = False  # targets of mixed images are class indices and lambdas, see LambdaCollate
    mix_in_workers: bool = False  # also without the prefetcher; then the result is a DataLoader
