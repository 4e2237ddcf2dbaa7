"""Grids of training images as the network sees them, the views of an image side by side over their labels."""
import os
from typing import List, Optional, Sequence

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_pil_image

from .. import durable

_CAPTION_HEIGHT = 14
_MARGIN = 4


def save_views(
        path: str,
        input: torch.Tensor,
        target: torch.Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Optional[List[str]] = None,
        views: int = 2,
        most: int = 16,
        min_side: int = 112,
) -> None:
    """Write a picture with a row for each image, its views beside each other, each over its mixed labels.

    Args:
        path: Image file to write.
        input: Normalised view-major images [views * B, C, H, W].
        target: Class indices [views * B] or soft targets [views * B, K].
        mean, std: What the images were normalised by, pixels in [0, 1].
        class_names: Names by index.
        views: Views of an image.
        most: Images to show.
        min_side: Smaller images are enlarged to this height, in pixels.
    """
    batch_size = len(input) // views
    rows = [[v * batch_size + i for v in range(views)] for i in range(min(most, batch_size))]
    scale = max(1, -(-min_side // input.shape[-2]))
    height, width = input.shape[-2] * scale + _CAPTION_HEIGHT + _MARGIN, input.shape[-1] * scale + _MARGIN
    columns = max(1, int(len(rows) ** 0.5) // 2) if len(rows) > 4 else 1
    lines = -(-len(rows) // columns)
    sheet = Image.new('RGB', (columns * (views * width + 3 * _MARGIN), lines * height), 'white')
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        left, top = place // lines * (views * width + 3 * _MARGIN), place % lines * height
        for v, index in enumerate(row):
            image = to_image(input[index], mean, std)
            image = image.resize((image.width * scale, image.height * scale), Image.NEAREST)
            sheet.paste(image, (left + v * width, top))
            caption = _fit(draw, label_text(target[index], class_names), width - _MARGIN)
            draw.text((left + v * width, top + height - _CAPTION_HEIGHT - _MARGIN), caption, fill='black')
    with durable.replacing(path) as f:
        sheet.save(f, format=Image.registered_extensions()[os.path.splitext(path)[1].lower()])


def label_text(target: torch.Tensor, class_names: Optional[List[str]] = None, most: int = 2) -> str:
    """'cat', or for a mixed label 'cat 0.62 + dog 0.38'; the even floor of label smoothing is left out."""
    def name(index: int) -> str:
        return class_names[index] if class_names and index < len(class_names) else str(index)

    if target.ndim == 0:
        return name(int(target))
    above = target - target.min()
    shares = above / above.sum()
    top = [index for index in shares.topk(min(most, len(shares))).indices.tolist() if shares[index] > 0.005]
    if len(top) == 1:
        return name(top[0])
    return ' + '.join(f'{name(index)} {shares[index]:.2f}' for index in top)


def to_image(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalised image [C, H, W] in colour, of its first three channels, or in gray, of its first."""
    channels = x.shape[0]
    x = x.float().cpu() * torch.tensor(std)[-channels:, None, None] + torch.tensor(mean)[-channels:, None, None]
    return to_pil_image(x.clamp(0, 1)[:3] if channels >= 3 else x.clamp(0, 1)[:1]).convert('RGB')


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    while draw.textlength(text) > width and len(text) > 1:
        text = text[:-1]
    return text
