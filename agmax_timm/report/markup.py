"""HTML and SVG as text in which nothing is left unescaped by mistake: what is not `Html` is escaped."""
import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from PIL import Image

# Without a closing tag.
_VOID = ('br', 'img', 'meta')


class Html(str):
    """Text that is HTML already."""


def tag(name: str, /, *content: Any, **attributes: Any) -> Html:
    """An element. `class_` and `aria_label` stand for class and aria-label; attributes of None are left out."""
    words = ''.join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
                    for key, value in attributes.items() if value is not None)
    return Html(f'<{name}{words}>' if name in _VOID else f'<{name}{words}>{join(content)}</{name}>')


def join(parts: Iterable[Any]) -> Html:
    """Parts behind each other, those escaped that are no Html; None is nothing."""
    return Html(''.join(
        part if isinstance(part, Html) else escape(str(part)) for part in parts if part is not None))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], class_: str | None = None) -> Html:
    """A table that scrolls sideways where it is too wide; the first cell names its row. Others may be `td` already."""
    def cell(content: Any) -> Html:
        return content if isinstance(content, Html) and content.startswith('<td') else tag('td', content)

    body = join(tag('tr', tag('th', first, scope='row'), *map(cell, rest)) for first, *rest in rows)
    heading = tag('tr', *(tag('th', title, scope='col') for title in head))
    return tag('div', tag('table', tag('thead', heading), tag('tbody', body), class_=class_), class_='wide', tabindex=0)


def details(title: str, *content: Any) -> Html:
    """What is unfolded by a click."""
    return tag('details', tag('summary', title), *content)


def section(title: str, *content: Any) -> Html:
    return tag('section', tag('h2', title), *content)


def picture(image: Image.Image, description: str, most: int = 224) -> Html:
    """An image within the page, at most so many pixels wide and high; a small one keeps its very pixels."""
    image = image.copy()
    image.thumbnail((most, most))
    small = max(image.size) <= 64
    file = io.BytesIO()
    image.save(file, format='PNG' if small else 'JPEG', quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return tag('img', src=f'data:image/{"png" if small else "jpeg"};base64,{data}', alt=description,
               width=image.width, height=image.height, class_='pixels' if small else None)
