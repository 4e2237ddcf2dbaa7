"""Plan a commit to a repository that holds a model, so that changes of its owner are kept.

The card ends with a comment that records digests of what we wrote: of the metadata by key, of the sections by name, and
of the other files. A part whose digest differs was changed by somebody else.
"""
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..base.licences import license_of_card
from .card import OUR_TAGS
from .card_text import join_card, join_sections, split_card, split_sections, with_license
from .hub_error import HubError
from .staging import CARD, FILES

_RECORD = re.compile(r'\n*<!-- agmax_timm wrote (\{.*\}) -->[ \t]*\n?')
_LICENSE = ('license', 'license_name', 'license_link')
# Files with which other programs load a model or prepare its images.
_OF_MODELS = re.compile(r'preprocessor_config\.json|[^/]+\.(safetensors|bin|onnx|h5|msgpack|ckpt|pth|pt|index\.json)')


class ChangedError(HubError):
    """Publishing would overwrite changes that were made on the Hub. The `flags` allow it."""

    def __init__(self, message: str, flags: list[str]):
        super().__init__(message)
        self.flags = flags


@dataclass
class Remote:
    """A branch on the Hub: its commit, its README.md, and the identifier of each file by its path."""
    commit: str
    card: str = ''
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Update:
    """Content of a commit: the card to write, the files to delete, and a description of all changes."""
    card: str
    deletions: list[str]
    lines: list[str]


def plan_update(
        remote: Remote | None,
        card: str,
        files: dict[str, tuple[str, ...]],
        replace_card: bool = False,
        replace_files: bool = False,
        license_chosen: bool = False,
) -> Update:
    """Plan a commit that keeps the changes that were made on the Hub since we wrote it.

    Args:
        remote: Branch on the Hub; None without a repository or branch.
        files: Identifiers that the Hub may give to each of the other files, by name.
        replace_card, replace_files: As for Destination.
        license_chosen: Whether the licence replaces another one.

    Raises:
        ChangedError: A change would be overwritten.
    """
    remote = remote or Remote('')
    record = _read_record(remote.card)
    changed, deletions = _compare_files(remote.files, files, record.get('files', {}))
    problems, flags = [], []
    if changed and not replace_files:
        problems.append(f"on the Hub, {', '.join(changed)} were not published from here, or changed since: "
                        '--replace-files overwrites or deletes them')
        flags.append('--replace-files')
    elif changed:
        deletions += [name for name in changed if name not in files]
    merge = _Merge(record.get('metadata', {}), record.get('sections', {}))
    text = card
    if remote.card.strip() and not replace_card:
        text = merge.run(remote.card, card, is_model='config.json' in remote.files and not record,
                         license_chosen=license_chosen)
        if merge.conflicts:
            license = ', --license chooses a licence' if 'license' in merge.conflicts else ''
            problems.append(f"on the Hub, {CARD} was changed in parts that would be replaced ("
                            f"{', '.join(merge.conflicts)}): --replace-card replaces it{license}")
            flags.append('--replace-card')
    if problems:
        raise ChangedError('; '.join(problems), flags)
    text = _with_record(text, {**_digests(card, merge.written), 'files': {
        name: ' '.join(identifier[:16] for identifier in identifiers) for name, identifiers in files.items()}})
    return Update(text, deletions, _describe(remote, text, files, deletions, merge.kept))


def _compare_files(
        found: dict[str, str],
        files: dict[str, tuple[str, ...]],
        written: dict[str, str],
) -> tuple[list[str], list[str]]:
    """Return the files of others that would be replaced, and our files that are not part of the new model."""
    changed: list[str] = []
    deletions: list[str] = []
    for name, identifier in found.items():
        ours = identifier[:16] in written.get(name, '').split()
        if name in files:
            if not ours and identifier not in files[name]:
                changed.append(name)
        elif name != CARD and (name in FILES or _OF_MODELS.fullmatch(name)):
            (deletions if ours else changed).append(name)
    return changed, deletions


class _Merge:
    """Merge of two cards. A part that only one side changed is taken from that side.

    Attributes:
        conflicts: Parts that both sides changed.
        kept: Parts that are taken from the Hub.
        written: The new card; if it states no licence, with that of the Hub.
    """

    def __init__(self, metadata: dict[str, str], sections: dict[str, str]):
        self.metadata, self.sections = metadata, sections
        self.conflicts: list[str] = []
        self.kept: list[str] = []
        self.written = ''

    def run(self, theirs: str, new: str, is_model: bool, license_chosen: bool) -> str:
        """Return the merged card, which is valid without conflicts.

        Args:
            is_model: Whether the text on the Hub describes a model that was not published from here.
            license_chosen: As for plan_update.
        """
        theirs = theirs.replace('\r\n', '\n')
        try:
            their_metadata, their_body = split_card(theirs)
            their_sections, their_rest = split_sections(_RECORD.sub('\n', their_body))
        except ValueError as error:
            self.conflicts.append(str(error))
            return ''
        their_license = license_of_card(their_metadata)
        if their_license and not license_chosen and license_of_card(split_card(new)[0]) is None and (
                _digest(their_metadata.get('license')) != self.metadata.get('license')):
            new = with_license(new, their_license)
        self.written = new
        new_metadata, new_body = split_card(new)
        new_sections, new_rest = split_sections(new_body)

        metadata = {}
        for name in {**new_metadata, **their_metadata}:
            value = self._choose(name, self.metadata.get(name), their_metadata.get(name), new_metadata.get(name),
                                 forced=license_chosen and name in _LICENSE)
            if value is not None:
                metadata[name] = value
        sections = {name: self._choose(f'section {name}', self.sections.get(name), their_sections.get(name),
                                       new_sections.get(name)) for name in {**new_sections, **their_sections}}
        rest = self._choose_rest(their_rest, new_rest, is_model)
        body = join_sections(rest, {name: text for name, text in sections.items() if text is not None})
        if metadata == their_metadata:
            return theirs.removesuffix(their_body) + body
        return join_card(metadata, body)

    def _choose(self, name: str, written: str | None, theirs: Any, new: Any, forced: bool = False) -> Any:
        """Return one part of the merged card, None if it has no such part; `written` is the digest of what we wrote."""
        if theirs == new or forced or _digest(theirs) == written:
            return new
        if name == 'tags' and isinstance(theirs, list):
            theirs = [*new, *(tag for tag in theirs if tag not in new and tag not in OUR_TAGS)]
        elif theirs is not None and _digest(new) != written:
            self.conflicts.append(name)
        self.kept.append(name)
        return theirs

    def _choose_rest(self, theirs: str, new: str, is_model: bool) -> str:
        """Return the text outside of our sections, with marks for the sections."""
        their_text, new_text = (' '.join(join_sections(rest, {}).split()) for rest in (theirs, new))
        if their_text and (is_model or new_text not in ('', their_text)):
            self.conflicts.append('text')
        if their_text:
            self.kept.append('text')
        return theirs if their_text else new


def _digests(card: str, written: str) -> dict[str, Any]:
    """Return the record of a card: digests of the metadata that we made and of the sections that we wrote."""
    metadata, body = split_card(card)
    sections, _ = split_sections(split_card(written)[1] if written else body)
    return {'metadata': {name: _digest(value) for name, value in metadata.items()},
            'sections': {name: _digest(text) for name, text in sections.items()}}


def _digest(value: Any) -> str | None:
    if value is None:
        return None
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_record(card: str) -> dict[str, dict[str, str]]:
    """Return the record in a card; empty if there is none or it is damaged."""
    match = _RECORD.search(card)
    try:
        record = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        return {}
    return {name: part for name, part in record.items()
            if isinstance(part, dict) and all(isinstance(value, str) for value in part.values())}


def _with_record(card: str, record: dict[str, Any]) -> str:
    return f'{_RECORD.sub("", card).rstrip()}\n\n<!-- agmax_timm wrote {json.dumps(record)} -->\n'


def _describe(
        remote: Remote,
        card: str,
        files: dict[str, tuple[str, ...]],
        deletions: list[str],
        kept: list[str],
) -> list[str]:
    """Return a line for each kind of change."""
    changes: dict[str, list[str]] = {'added': [], 'replaced': [], 'unchanged': []}
    for name, identifiers in files.items():
        found = remote.files.get(name)
        changes['added' if found is None else 'unchanged' if found in identifiers else 'replaced'].append(name)
    kind = 'added' if not remote.card else 'unchanged' if remote.card == card else 'replaced'
    changes[kind].append(CARD)
    changes['deleted'] = deletions
    changes[f'kept in {CARD} as changed on the Hub'] = kept
    return [f"{kind}: {', '.join(names)}" for kind, names in changes.items() if names]
