"""Picture files of training batches: the views of each image side by side, with their labels."""
import math
import os
from typing import Any

import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_pil_image

from ..base import atomic_write
from ..base.fonts import Font, font_for
from .loading.device import Input

_MARGIN = 16  # around the sheet, and between two images
_GAP = 6  # between two views, and between a text and its image
_FONT_SIZE = 13
_LINE = 17  # height of a line of text
_MIN_SIDE = 112  # height of an image, below which it is enlarged
_MOST_IMAGES = 16  # of a batch in one picture


class ToPicture:
    """Convert an input of the network to a picture: undo the normalisation, and join the patches of NaFlex.

    Args:
        data_config: Dict of 'mean', 'std' and 'input_size' (C, H, W).
        patch_size: Height and width of the model's patches, None if the input is images. Patches with another number
            of pixels are square, like those of --naflex-patch-sizes.
        patches_channels_first: Whether channels are the first dimension of a patch.
    """

    def __init__(
            self,
            data_config: dict[str, Any],
            patch_size: tuple[int, int] | None = None,
            patches_channels_first: bool = False,
    ):
        self.channels = data_config['input_size'][0]
        self.mean, self.std = (torch.tensor(data_config[name])[-self.channels:, None, None] for name in ('mean', 'std'))
        self.patch_size = patch_size
        self.patches_channels_first = patches_channels_first

    def __call__(self, input: Input, index: int) -> Image.Image:
        """Return the picture of an image of a batch: its first three channels in colour, or its first one in gray."""
        if isinstance(input, torch.Tensor):
            x = input[index]
        else:
            x = self._join(*(input[name][index] for name in ('patches', 'patch_coord', 'patch_valid')))
        x = x.float().cpu() * self.std + self.mean
        return to_pil_image(x.clamp(0, 1)[:3] if self.channels >= 3 else x.clamp(0, 1)[:1]).convert('RGB')

    def _join(self, patches: torch.Tensor, coord: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Join patches [N, P * Q * C] or [N, P, Q, C] at their rows and columns [N, 2] to an image [C, H, W]."""
        patches, (rows, columns) = patches[valid], coord[valid].T
        pixels = patches[0].numel() // self.channels
        size = self.patch_size
        if size is None or math.prod(size) != pixels:
            size = (math.isqrt(pixels),) * 2
        if self.patches_channels_first:
            patches = patches.view(-1, self.channels, *size)
        else:
            patches = patches.view(-1, *size, self.channels).permute(0, 3, 1, 2)
        grid = patches.new_zeros(int(rows.max()) + 1, int(columns.max()) + 1, self.channels, *size)
        grid[rows, columns] = patches
        return grid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def save_views(
        path: str,
        input: Input,
        target: torch.Tensor,
        to_picture: ToPicture,
        class_names: list[str] | None = None,
        views: int = 2,
        title: str = '',
) -> None:
    """Write a picture of a batch. Each row has the views of one image, with their labels below.

    Args:
        input: Normalised view-major images [views * B, C, H, W], or a NaFlex dictionary of their patches.
        target: Class indices [views * B] or soft targets [views * B, K].
        to_picture: Function that makes a picture of an image of the input.
        class_names: Class names by index. None shows indices.
        views: Number of views of an image.
    """
    batch_size = len(target) // views
    count = min(_MOST_IMAGES, batch_size)
    indices = [v * batch_size + i for i in range(count) for v in range(views)]
    images = {index: to_picture(input, index) for index in indices}
    labels = {index: ' '.join(label_text(target[index], class_names).split()) for index in indices}
    captions = {index: label.replace(' + ', ' +\n').split('\n') for index, label in labels.items()}
    tallest, widest = (max(sides) for sides in zip(*((image.height, image.width) for image in images.values())))
    scale = max(1, -(-_MIN_SIDE // tallest))
    font = font_for([title, *labels.values()], _FONT_SIZE)
    text_width = max(font.getlength(line) for lines in captions.values() for line in lines)
    width, height = max(widest * scale, min(int(text_width) + 1, 2 * _MIN_SIDE)), tallest * scale
    columns = max(1, math.isqrt(count) // 2) if count > 4 else 1
    rows = -(-count // columns)
    block = views * (width + _GAP) - _GAP + _MARGIN
    row = height + _GAP + _LINE * max(map(len, captions.values())) + _MARGIN
    top = _MARGIN + (_LINE + _GAP) * ((views > 1) + bool(title))
    sheet = Image.new('RGB', (_MARGIN + columns * block, top + rows * row), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _fit(title, sheet.width - 2 * _MARGIN, font), 'black', font)
    for place, index in enumerate(indices):
        x = _MARGIN + place // views // rows * block + place % views * (width + _GAP)
        y = top + place // views % rows * row
        if views > 1:
            draw.text((x, top - _GAP - _LINE), f'view {place % views + 1}', 'dimgray', font)
        image = images[index].resize((images[index].width * scale, images[index].height * scale),
                                     Image.Resampling.NEAREST)
        draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline='lightgray')  # for white images
        sheet.paste(image, (x, y))
        for number, line in enumerate(captions[index]):
            draw.text((x, y + image.height + _GAP + number * _LINE), _fit(line, width, font), 'black', font)
    with atomic_write.replacing(path) as f:
        sheet.save(f, format=Image.registered_extensions()[os.path.splitext(path)[1].lower()])


def label_text(target: torch.Tensor, class_names: list[str] | None = None) -> str:
    """Return the text of a target: 'cat', or 'cat 0.62 + dog 0.38' if it is mixed, without label smoothing.

    Args:
        target: Class index, or soft target [K].
        class_names: Class names by index. None shows indices.
    """
    def name(index: int) -> str:
        return class_names[index] if class_names and index < len(class_names) else str(index)

    if target.ndim == 0:
        return name(int(target))
    if target.sum() > 1.5 or not target.any():  # several labels of one image
        return ', '.join(name(index) for index in target.nonzero().flatten().tolist())
    # The minimum is the floor of label smoothing. With two classes, it may be a share of the mix.
    above = target - target.min() if len(target) > 2 else target
    shares = above / above.sum()
    top = [index for index in shares.topk(min(2, len(shares))).indices.tolist() if shares[index] > 0.005]
    if len(top) == 1:
        return name(top[0])
    return ' + '.join(f'{name(index)} {shares[index]:.2f}' for index in top)


def _fit(text: str, width: int, font: Font) -> str:
    """Return a text, or its beginning and '…' if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}…') > width:
        text = text[:-1].rstrip()
    return f'{text}…'
