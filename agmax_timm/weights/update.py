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
from .staging import CARD, CONFIG, PUBLISHED

_Digests = dict[str, str]  # by key of the metadata, name of the section, or name of the file

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
        remote: Branch on the Hub, or the default one that a new branch starts from; None without a repository.
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
    merge = _Merge(card, record.get('metadata', {}), record.get('sections', {}))
    text = card
    if remote.card.strip() and not replace_card:
        text = merge.run(remote.card, is_model=CONFIG in remote.files and not record, license_chosen=license_chosen)
        if merge.conflicts:
            license = ', --license chooses a licence' if 'license' in merge.conflicts else ''
            problems.append(f"on the Hub, {CARD} was changed in parts that would be replaced ("
                            f"{', '.join(map(str, merge.conflicts))}): --replace-card replaces it{license}")
            flags.append('--replace-card')
    if problems:
        raise ChangedError('; '.join(problems), flags)
    text = _with_record(text, _make_record(card, merge.licensed, files))
    return Update(text, deletions, [*_describe_files(remote, text, files, deletions), *merge.describe()])


def _compare_files(
        found: dict[str, str],
        files: dict[str, tuple[str, ...]],
        recorded: _Digests,
) -> tuple[list[str], list[str]]:
    """Return the files of others that would be replaced, and our files that are not part of the new model."""
    changed: list[str] = []
    deletions: list[str] = []
    for name, identifier in found.items():
        ours = identifier[:16] in recorded.get(name, '').split()
        if name in files:
            if not ours and identifier not in files[name]:
                changed.append(name)
        elif name != CARD and (name in PUBLISHED or _OF_MODELS.fullmatch(name)):
            (deletions if ours else changed).append(name)
    return changed, deletions


class _Merge:
    """Merge of our new card into that of the Hub. A part that only one side changed is taken from that side.

    Args:
        card: Our new card.
        metadata, sections: Digests of what we wrote last.

    Attributes:
        licensed: Our new card; if it states no licence, with that of the Hub.
        conflicts: Parts that both sides changed.
        kept: Parts that are taken from the Hub.
        deleted: Parts that were deleted on the Hub. They stay deleted, even if we have new content for them.
    """

    def __init__(self, card: str, metadata: _Digests, sections: _Digests):
        self.licensed, self.metadata, self.sections = card, metadata, sections
        self.conflicts: list[str] = []
        self.kept: list[str] = []
        self.deleted: list[str] = []

    def run(self, theirs: str, is_model: bool, license_chosen: bool) -> str:
        """Return the merged card, which is valid without conflicts.

        Args:
            theirs: Card on the Hub.
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
        if their_license and not license_chosen and license_of_card(split_card(self.licensed)[0]) is None and (
                _digest(their_metadata.get('license')) != self.metadata.get('license')):
            self.licensed = with_license(self.licensed, their_license)
        new_metadata, new_body = split_card(self.licensed)
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

    def _choose(self, name: str, recorded: str | None, theirs: Any, new: Any, forced: bool = False) -> Any:
        """Return one part of the merged card, None if it has no such part.

        Args:
            recorded: Digest of what we wrote last; None if we did not write the part.
            theirs, new: The part on the Hub and in our new card; None without it.
        """
        if theirs == new or forced or _digest(theirs) == recorded:
            return new
        if theirs is None:  # nothing of theirs would be lost, so this is no conflict
            self.deleted.append(name)
            return None
        if name == 'tags' and isinstance(theirs, list):
            ours = [new] if isinstance(new, str) else new or []
            theirs = [*ours, *(tag for tag in theirs if tag not in ours and tag not in OUR_TAGS)]
        elif _digest(new) != recorded:
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

    def describe(self) -> list[str]:
        """Return a line for the parts that are kept and one for those that stay deleted."""
        parts = {f'kept in {CARD} as changed on the Hub': self.kept,
                 f'left out of {CARD} as deleted on the Hub': self.deleted}
        return [f"{kind}: {', '.join(map(str, names))}" for kind, names in parts.items() if names]


def _make_record(card: str, licensed: str, files: dict[str, tuple[str, ...]]) -> dict[str, _Digests]:
    """Return the record of a card.

    The metadata are those of our card: a licence of the Hub in them would pass for ours, and be replaced the next time.
    The sections are those that we write, which name the licence of the Hub.

    Args:
        licensed: See _Merge.
    """
    parts = {'metadata': split_card(card)[0], 'sections': split_sections(split_card(licensed)[1])[0]}
    return {**{kind: {name: _digest(value) or '' for name, value in values.items()} for kind, values in parts.items()},
            'files': {name: ' '.join(identifier[:16] for identifier in identifiers)
                      for name, identifiers in files.items()}}


def _digest(value: Any) -> str | None:
    """Return the digest of a part of a card. It is None for None, as a record has no digest of a missing part."""
    if value is None:
        return None
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_record(card: str) -> dict[str, _Digests]:
    """Return the record in a card; empty if there is none or it is damaged."""
    match = _RECORD.search(card)
    try:
        record = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        return {}
    return {name: part for name, part in record.items()
            if isinstance(part, dict) and all(isinstance(value, str) for value in part.values())}


def _with_record(card: str, record: dict[str, _Digests]) -> str:
    return f'{_RECORD.sub("", card).rstrip()}\n\n<!-- agmax_timm wrote {json.dumps(record)} -->\n'


def _describe_files(
        remote: Remote,
        card: str,
        files: dict[str, tuple[str, ...]],
        deletions: list[str],
) -> list[str]:
    """Return a line for each kind of change of a file."""
    changes: dict[str, list[str]] = {'added': [], 'replaced': [], 'unchanged': []}
    for name, identifiers in files.items():
        found = remote.files.get(name)
        changes['added' if found is None else 'unchanged' if found in identifiers else 'replaced'].append(name)
    kind = 'added' if not remote.card else 'unchanged' if remote.card == card else 'replaced'
    changes[kind].append(CARD)
    changes['deleted'] = deletions
    return [f"{kind}: {', '.join(names)}" for kind, names in changes.items() if names]
