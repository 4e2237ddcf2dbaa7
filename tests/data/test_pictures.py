"""Grids of views: the pixels that the network sees, side by side, over their labels."""
import pytest
import torch
from PIL import Image
from timm.data.naflex_transforms import patchify_image
from torchvision.transforms.functional import pil_to_tensor

from agmax_timm.data.pictures import ToPicture, label_text, save_views


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
    to_picture = ToPicture(dict(mean=mean, std=std, input_size=(channels, 112, 120)))
    save_views(str(path), normalised, torch.arange(6) % 3, to_picture, ['a', 'b', 'c'])
    sheet = pil_to_tensor(Image.open(path))
    row_height = sheet.shape[1] // 3
    for i in range(3):
        top = i * row_height
        for view, left in ((i, 0), (i + 3, 124)):
            shown = sheet[:channels, top:top + 112, left:left + 120]
            assert (shown.int() - pixels[view].int()).abs().max() <= 1


@pytest.mark.parametrize('channels_first', [False, True])
@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('patch_size', [(8, 8), (8, 4), (3, 10)])
@pytest.mark.parametrize('channels', [1, 3])
def test_patches_make_the_image_that_they_were_cut_from(channels, patch_size, flat, channels_first):
    pixels = torch.randint(256, (channels, 24, 40), dtype=torch.uint8)
    patches, coord, valid = patchify_image(
        (pixels / 255 - 0.5) / 0.25, patch_size, flatten_patches=flat, channels_last=not channels_first)
    filled = [torch.cat([part, part.new_zeros(4, *part.shape[1:])]) for part in (patches, coord, valid)]
    order = torch.randperm(len(filled[0]))
    batch = {name: part[order][None] for name, part in zip(('patches', 'patch_coord', 'patch_valid'), filled)}
    config = dict(mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(channels, 32, 32))
    shown = pil_to_tensor(ToPicture(config, patch_size, channels_first)(batch, 0))
    assert shown.shape == (3, 24, 40)
    assert (shown.int() - pixels.int()).abs().max() <= 1


def test_views_of_several_sizes_stand_in_one_grid(tmp_path):
    sizes = [(16, 48), (32, 24), (24, 24), (16, 48)]
    parts = [patchify_image(torch.ones(3, *size), (8, 8)) for size in sizes]
    batch = {name: torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
             for name, part in zip(('patches', 'patch_coord', 'patch_valid'), zip(*parts))}
    path = tmp_path / 'views.png'
    to_picture = ToPicture(dict(mean=(0., ) * 3, std=(0.5,) * 3, input_size=(3, 32, 32)), (16, 16))
    save_views(str(path), batch, torch.zeros(4, dtype=torch.long), to_picture, min_side=32)
    sheet = pil_to_tensor(Image.open(path))
    gray = (sheet == 127).all(dim=0)
    for index, (height, width) in enumerate(sizes):
        top, left = index % 2 * (sheet.shape[1] // 2), index // 2 * (48 + 4)
        cell = gray[top:top + 32, left:left + 48]
        assert cell[:height, :width].all() and cell.sum() == height * width


def test_captions_of_two_classes_and_of_several_labels():
    names = ['cat', 'dog', 'owl']
    assert label_text(torch.tensor([0.6, 0.4]), names) == 'cat 0.60 + dog 0.40'
    assert label_text(torch.tensor([0.5, 0.5]), names) == 'cat 0.50 + dog 0.50'
    assert label_text(torch.tensor([1., 0.]), names) == 'cat'
    assert label_text(torch.tensor([1., 0., 1.]), names) == 'cat, owl'
    assert label_text(torch.tensor([1., 1., 1.]), names) == 'cat, dog, owl'
    assert label_text(torch.tensor([0., 1., 0.]), names) == 'dog' and label_text(torch.zeros(3), names) == ''


def test_a_name_of_several_lines_is_a_caption(tmp_path):
    to_picture = ToPicture(dict(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 32, 32)))
    save_views(str(tmp_path / 'views.png'), torch.zeros(2, 3, 32, 32), torch.tensor([0, 0]), to_picture, ['a\nb'])
    assert (tmp_path / 'views.png').exists()
