"""Grids of views: the pixels that the network sees, side by side, over their labels."""
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from agmax_timm.run.pictures import label_text, save_views


@pytest.mark.parametrize('target, text', [
    (torch.tensor(1), 'dog'),
    (torch.tensor([0., 1., 0.]), 'dog'),
    (torch.tensor([0.62, 0.38, 0.]), 'cat 0.62 + dog 0.38'),
    (0.9 * torch.tensor([0., 0.25, 0.75]) + 0.1 / 3, 'bird 0.75 + dog 0.25'),  # smoothed
    (torch.tensor([0.999, 0.001, 0.]), 'cat'),
])
def test_label_text(target, text):
    assert label_text(target, ['cat', 'dog', 'bird']) == text


def test_label_text_without_names():
    assert label_text(torch.tensor([0., 0.5, 0.5])) in ('1 0.50 + 2 0.50', '2 0.50 + 1 0.50')


@pytest.mark.parametrize('channels', [1, 3])
def test_the_views_of_an_image_stand_side_by_side(tmp_path, channels):
    pixels = torch.randint(256, (6, channels, 112, 120), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6][-channels:], [0.2, 0.3, 0.1][-channels:]
    normalised = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    path = tmp_path / 'views.png'
    save_views(str(path), normalised, torch.arange(6) % 3, mean, std, ['a', 'b', 'c'])
    sheet = pil_to_tensor(Image.open(path))
    row_height = sheet.shape[1] // 3
    for i in range(3):
        top = i * row_height
        for view, left in ((i, 0), (i + 3, 124)):
            shown = sheet[:channels, top:top + 112, left:left + 120]
            assert (shown.int() - pixels[view].int()).abs().max() <= 1
