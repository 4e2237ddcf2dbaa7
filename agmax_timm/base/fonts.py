"""Fonts for pictures: one that has the characters of a text, such as umlauts, Cyrillic or Chinese."""
import functools
import os
from collections.abc import Iterable

from PIL import ImageFont

# Pillow searches these files in the system's font folders. DejaVu, a part of matplotlib, has no East Asian characters.
DEJAVU = 'DejaVuSans.ttf'
EAST_ASIAN = (
    'NotoSansCJK-Regular.ttc', 'NotoSansCJK-VF.ttc', 'NotoSansCJKsc-Regular.otf', 'wqy-microhei.ttc',
    'wqy-zenhei.ttc', 'DroidSansFallbackFull.ttf', 'msyh.ttc', 'YuGothM.ttc', 'malgun.ttf', 'Hiragino Sans GB.ttc',
    'AppleSDGothicNeo.ttc', 'Arial Unicode.ttf')

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(texts: Iterable[str], size: int) -> Font:
    """Return the first available font that has all characters of the texts, otherwise the one that lacks the fewest.

    Args:
        size: Size of the font in pixels.
    """
    characters = {character for text in texts for character in text if not character.isspace()}
    fonts = (font for font in (_open(file, size) for file in (DEJAVU, *EAST_ASIAN)) if font is not None)
    best: Font = next(fonts, None) or ImageFont.load_default(size)
    while _lacking(best, characters) and (other := next(fonts, None)):
        best = min(best, other, key=lambda font: _lacking(font, characters))
    return best


def families() -> list[str]:
    """Return the names of matplotlib's fonts that have these files, for `font.family`: it tries them in order."""
    from matplotlib.font_manager import fontManager
    names: dict[str, str] = {}
    for font in fontManager.ttflist:
        names.setdefault(os.path.basename(font.fname), font.name)  # the first font of a file, as Pillow opens it
    return ['DejaVu Sans', *dict.fromkeys(names[file] for file in EAST_ASIAN if file in names)]


@functools.cache
def _open(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        from matplotlib import get_data_path
        bundled = os.path.join(get_data_path(), 'fonts', 'ttf', file)
    except ImportError:
        bundled = file
    try:
        return ImageFont.truetype(bundled if os.path.exists(bundled) else file, size)
    except OSError:
        return None


def _lacking(font: Font, characters: set[str]) -> int:
    """Return the number of characters that the font shows as the box of a missing character."""
    box = font.getmask('\uffff')
    return sum((mask.size, bytes(mask)) == (box.size, bytes(box)) for mask in map(font.getmask, characters))
