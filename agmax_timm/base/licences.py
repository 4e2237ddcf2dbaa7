"""Licences of weights: the Hub's identifiers, the check of --license, and the licence in a model's metadata."""
import os
import re
from contextlib import suppress
from typing import Any

import yaml

from .errors import OptionError
from .text import nearest

# Identifiers of https://huggingface.co/docs/hub/repositories-licenses (August 2026). huggingface_hub has no list of
# them, and the Hub refuses a card with any other identifier.
LISTED = frozenset("""
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown
    unlicense wtfpl zlib
    """.split())
_OTHER = 'other'
_NAME = re.compile(r'[a-z0-9][a-z0-9.+-]*')


def check_license(value: str | None) -> None:
    """Raise OptionError unless the value is empty, an identifier of the Hub's list, or other:NAME."""
    if not value or value in LISTED:
        return
    prefix, _, name = value.partition(':')
    if prefix != _OTHER or not _NAME.fullmatch(name):
        raise OptionError(f"--license '{value}': the Hub does not list such a licence{nearest(value.lower(), LISTED)}; "
                          'for another licence use other:NAME, with a-z, 0-9, -, . and + in NAME')


def license_name(value: Any) -> str | None:
    """Return the name of a licence in a model's metadata, in lower case. None if there is none."""
    if not isinstance(value, str):
        return None
    name = re.sub('[^a-z0-9.+-]+', '-', value.strip().lower().removeprefix(f'{_OTHER}:')).strip('-')
    return None if name in ('', _OTHER) else name


def license_of_card(metadata: dict[str, Any]) -> str | None:
    """Return the name of the licence in the metadata of a model card. None if there is none."""
    return license_name(metadata.get('license')) or license_name(metadata.get('license_name'))


def license_in_folder(folder: str) -> str | None:
    """Return the name of the licence in README.md of a folder. None if there is none."""
    from huggingface_hub import metadata_load
    with suppress(OSError, ValueError, yaml.YAMLError):
        return license_of_card(metadata_load(os.path.join(folder, 'README.md')) or {})
    return None


def license_fields(name: str | None) -> dict[str, Any]:
    """Return a model card's metadata for a licence: `other` with a `license_name` if the Hub does not list it."""
    if name is None:
        return {'license': _OTHER}
    return {'license': name} if name in LISTED else {'license': _OTHER, 'license_name': name}
