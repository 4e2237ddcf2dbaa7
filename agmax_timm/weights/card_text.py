"""The text of a model card: metadata and sections. Publishing again replaces only what is between our marks."""
import re
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..base.licences import license_fields

_BEGIN, _END = '<!-- agmax_timm: %s -->', '<!-- agmax_timm: end of %s -->'
_LICENSE_ROW = '- **Licence:**'


def license_row(license: str | None, base_license: str | None = None) -> str:
    """Return the line of a card about its licence, compared with that of the weights that training started from."""
    if license is None:
        return f'{_LICENSE_ROW} none is stated: whoever publishes this model has to choose one'
    of_base = ', that of the weights from which training started' if license == base_license else ''
    return f'{_LICENSE_ROW} {license}{of_base}'


def with_license(card: str, license: str | None) -> str:
    """Replace the licence in the metadata and in the text of a card."""
    metadata, body = split_card(card)
    for name in ('license_name', 'license_link'):
        metadata.pop(name, None)
    body = re.sub(rf'^{re.escape(_LICENSE_ROW)}.*$', license_row(license), body, flags=re.M)
    return join_card({**metadata, **license_fields(license)}, body)


def marked(name: str, text: str) -> str:
    """Return the text of a section between its marks."""
    return f'{_BEGIN % name}\n{text}\n{_END % name}'


def join_sections(rest: str, sections: dict[str, str]) -> str:
    """Insert sections at their marks. A section without a mark follows the one before it. Other marks are removed."""
    rest = re.sub(r'\n*' + _BEGIN % r'(\w+)', lambda match: match[0] if match[1] in sections else '', rest)
    before = ''
    for name, text in sections.items():
        mark, section = _BEGIN % name, marked(name, text)
        if mark in rest:
            rest = rest.replace(mark, section, 1)
        elif before:
            rest = rest.replace(before, f'{before}\n\n{section}', 1)
        else:
            rest = f'{rest.rstrip()}\n\n{section}\n'.lstrip('\n')
        before = _END % name
    return rest


def split_sections(body: str) -> tuple[dict[str, str], str]:
    """Split the text of a card into our sections and the other text, which keeps a mark for each section.

    Raises:
        ValueError: The end of a section is missing.
    """
    sections = {}

    def cut(match: re.Match) -> str:
        sections[match[1]] = match[2].strip('\n')
        return _BEGIN % match[1]
    rest = re.sub(_BEGIN % r'(\w+)' + r'\n([\s\S]*?)\n?' + _END % r'\1', cut, body)
    if len(re.findall(_BEGIN % r'\w+', rest)) != len(sections) or re.search(_END % r'\w+', rest):
        raise ValueError('its marks <!-- agmax_timm: ... --> are damaged')
    return sections, rest


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into metadata and text. Raises ValueError if the metadata are not a mapping in YAML."""
    match = REGEX_YAML_BLOCK.search(card)
    try:
        metadata = (yaml.safe_load(match[2]) if match else None) or {}
    except yaml.YAMLError:
        raise ValueError('its metadata are no YAML') from None
    if not isinstance(metadata, dict):
        raise ValueError('its metadata are not lines of "key: value"')
    return metadata, card[match.end():] if match else card


def join_card(metadata: dict[str, Any], body: str) -> str:
    return f'---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}'
