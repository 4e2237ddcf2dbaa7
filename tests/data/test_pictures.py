"""Grids of views: the pixels that the network gets, side by side, with their labels."""
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from timm.data.naflex_transforms import patchify_image
from torchvision.transforms.functional import pil_to_tensor

from agmax_timm.base import fonts
from agmax_timm.base.fonts import font_for
from agmax_timm.data.pictures import ToPicture, _fit, label_text, save_views


@pytest.mark.parametrize('target, text', [
    (torch.tensor(1), 'dog'),
    (torch.tensor([0., 1., 0.]), 'dog'),
    (torch.tensor([0.62, 0.38, 0.]), 'cat 0.62 + dog 0.38'),
    (0.9 * torch.tensor([0., 0.25, 0.75]) + 0.1 / 3, 'bird 0.75 + dog 0.25'),  # smoothed
    (torch.tensor([0.999, 0.001, 0.]), 'cat'),
])
def test_label_text_names_classes_and_shares(target, text):
    assert label_text(target, ['cat', 'dog', 'bird']) == text


def test_label_text_without_names_has_numbers():
    assert label_text(torch.tensor([0., 0.5, 0.5])) in ('1 0.50 + 2 0.50', '2 0.50 + 1 0.50')


def place_of(image, sheet):
    """Left and top of the only occurrence of an image in a sheet. Both are uint8 [C, H, W], equal up to one level."""
    height, width = image.shape[1:]
    corners = (sheet[:, :sheet.shape[1] - height + 1, :sheet.shape[2] - width + 1].int()
               - image[:, :1, :1].int()).abs().amax(0) <= 1
    places = [(left, top) for top, left in corners.nonzero().tolist()
              if (sheet[:, top:top + height, left:left + width].int() - image.int()).abs().max() <= 1]
    (place,) = places
    return place


@pytest.mark.parametrize('channels', [1, 3])
def test_the_views_of_an_image_are_side_by_side(tmp_path, channels):
    pixels = torch.randint(256, (6, channels, 112, 120), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6][-channels:], [0.2, 0.3, 0.1][-channels:]
    normalised = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    path = tmp_path / 'views.png'
    to_picture = ToPicture(dict(mean=mean, std=std, input_size=(channels, 112, 120)))
    save_views(str(path), normalised, torch.arange(6) % 3, to_picture, ['a', 'b', 'c'], title='epoch 0, update 7')
    sheet = pil_to_tensor(Image.open(path))
    places = [place_of(image.expand(3, -1, -1), sheet) for image in pixels]
    first, second = places[:3], places[3:]
    assert len({left for left, _ in first}) == 1 and [top for _, top in first] == sorted({top for _, top in first})
    assert all(top == other_top and left + 120 < other_left
               for (left, top), (other_left, other_top) in zip(first, second))
    right, bottom = second[-1][0] + 120, second[-1][1] + 112
    assert (sheet[:, :, right + 2:] == 255).all() and min(*first[0], sheet.shape[2] - right) >= 16
    texts = [(sheet[:, rows, :] < 128).any().item() for rows in (  # title, names of the views, a caption, the margin
        slice(0, first[0][1] - 20), slice(first[0][1] - 20, first[0][1] - 2), slice(bottom + 2, -16), slice(-14, None))]
    assert texts == [True, True, True, False]


def test_a_caption_has_the_whole_name_or_an_ellipsis():
    font = font_for([], 13)
    assert _fit('grün', 200, font) == 'grün'
    assert _fit('a very long name', 60, font) == 'a very…' and font.getlength('a very…') <= 60


def test_fonts_have_the_characters_of_the_texts():
    def drawn(font, character):
        return bytes(font.getmask(character))

    font = font_for(['Großer Lkw', 'grün', 'Ж'], 13)
    box = drawn(font, '\uffff')
    assert all(drawn(font, character) != box for character in 'ßüЖ')
    assert drawn(font, 'ü') != drawn(font, 'u')


def test_the_font_that_lacks_the_fewest_characters_is_used(monkeypatch):
    class Font:
        def __init__(self, known):
            self.known = known

        def getmask(self, character):
            mask = Image.new('L', (2, 2), ord(character) % 200 if character in self.known else 255).im
            return mask

    found = {fonts.DEJAVU: Font('ab'), 'msyh.ttc': Font('a猫'), 'malgun.ttf': Font('한')}
    monkeypatch.setattr(fonts, '_open', lambda file, size: found.get(file))
    assert font_for(['a b'], 13) is found[fonts.DEJAVU]
    assert font_for(['猫 a'], 13) is found['msyh.ttc']
    assert font_for(['猫한한'], 13) is found['msyh.ttc']
    assert font_for(['한'], 13) is found['malgun.ttf']
    assert font_for(['\u0e01'], 13) is found[fonts.DEJAVU]
    found.clear()
    assert font_for(['a'], 13).getlength('a') > 0


def test_matplotlib_uses_the_first_font_of_a_file_like_pillow(monkeypatch):
    manager = pytest.importorskip('matplotlib.font_manager').fontManager
    names = 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'Noto Sans Mono CJK HK'
    found = [SimpleNamespace(fname='/fonts/NotoSansCJK-Regular.ttc', name=name) for name in names]
    monkeypatch.setattr(manager, 'ttflist', found)
    assert fonts.families() == ['DejaVu Sans', 'Noto Sans CJK JP']


@pytest.mark.parametrize('channels_first', [False, True])
@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('patch_size', [(8, 8), (8, 4), (3, 10)])
@pytest.mark.parametrize('channels', [1, 3])
def test_patches_are_joined_to_the_original_image(channels, patch_size, flat, channels_first):
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


def test_views_of_several_sizes_are_in_one_grid(tmp_path):
    sizes = [(16, 48), (32, 24), (24, 24), (16, 48)]
    parts = [patchify_image(torch.ones(3, *size), (8, 8)) for size in sizes]
    batch = {name: torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
             for name, part in zip(('patches', 'patch_coord', 'patch_valid'), zip(*parts))}
    path = tmp_path / 'views.png'
    to_picture = ToPicture(dict(mean=(0., ) * 3, std=(0.5,) * 3, input_size=(3, 32, 32)), (16, 16))
    save_views(str(path), batch, torch.zeros(4, dtype=torch.long), to_picture)
    sheet = pil_to_tensor(Image.open(path))
    gray = (sheet == 127).all(dim=0)
    rows, columns = gray.any(1).nonzero().flatten(), gray.any(0).nonzero().flatten()
    tops = [rows[0].item(), next(b.item() for a, b in zip(rows, rows[1:]) if b > a + 8)]
    lefts = [columns[0].item(), next(b.item() for a, b in zip(columns, columns[1:]) if b > a + 1)]
    for index, (height, width) in enumerate(sizes):
        top, left = tops[index % 2], lefts[index // 2]
        cell = gray[top:top + 4 * 32, left:left + 4 * 48]  # enlarged, because they are lower than 112 pixels
        assert cell[:4 * height, :4 * width].all() and cell.sum() == 16 * height * width


def test_captions_name_two_classes_or_several_labels():
    names = ['cat', 'dog', 'owl']
    assert label_text(torch.tensor([0.6, 0.4]), names) == 'cat 0.60 + dog 0.40'
    assert label_text(torch.tensor([0.5, 0.5]), names) == 'cat 0.50 + dog 0.50'
    assert label_text(torch.tensor([1., 0.]), names) == 'cat'
    assert label_text(torch.tensor([1., 0., 1.]), names) == 'cat, owl'
    assert label_text(torch.tensor([1., 1., 1.]), names) == 'cat, dog, owl'
    assert label_text(torch.tensor([0., 1., 0.]), names) == 'dog' and label_text(torch.zeros(3), names) == ''


def test_a_name_of_several_lines_is_accepted_as_a_caption(tmp_path):
    to_picture = ToPicture(dict(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 32, 32)))
    save_views(str(tmp_path / 'views.png'), torch.zeros(2, 3, 32, 32), torch.tensor([0, 0]), to_picture, ['a\nb'])
    assert (tmp_path / 'views.png').exists()
