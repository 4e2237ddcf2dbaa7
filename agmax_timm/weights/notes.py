"""Options of a published model in the notes of its pretrained_cfg, which timm does not interpret."""
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..base.image_modes import mode_of_channels

SEVERAL_LABELS = 'multilabel'  # task of a model with several labels per image
_MODE, _EXIF = 'input_img_mode=', 'exif_orientation'


def notes_of(options: Mapping[str, Any], in_chans: int) -> list[str]:
    """Return the notes of a model: its task, EXIF orientation and the PIL mode of its images, if not the defaults."""
    notes = [SEVERAL_LABELS] if options.get('task') == SEVERAL_LABELS else []
    mode = options.get('input_img_mode')
    notes += [_EXIF] if options.get(_EXIF) else []
    return notes + ([_MODE + mode] if mode and mode != mode_of_channels(in_chans) else [])


def noted_options(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the notes of a model. Empty for models of other programs."""
    notes = [note for note in pretrained_cfg.get('notes') or () if isinstance(note, str)]
    modes = [note.removeprefix(_MODE) for note in notes if note.startswith(_MODE)]
    noted: dict[str, Any] = {'task': SEVERAL_LABELS} if SEVERAL_LABELS in notes else {}
    if _EXIF in notes:
        noted[_EXIF] = True
    if modes and modes[0] in Image.MODES:
        noted['input_img_mode'] = modes[0]
    return noted
