"""The backbone of a weave: the base plus a delta that all its packs share, so that every skill inherits it.

A weave stores the delta and the name of the base, not the tuned model. The model that is opened from them equals, to
the bit, the one that :func:`skillweave.delta.write_tuned` writes and ``open_base`` then opens: each changed tensor is
summed in the base's stored dtype first, and only then cast to the dtype in which it is served. [ours]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from skillweave.base import Base, Checkpoint, fingerprint, resolve
from skillweave.delta import Delta
from skillweave.delta.schema import AGAIN, DELTA_FILE, is_delta
from skillweave.delta.schema import read_card as read_delta_card
from skillweave.delta.tuned import tuned_base
from skillweave.errors import UserError
from skillweave.files.folder import Folder
from skillweave.files.hashes import shortened
from skillweave.pack import BaseRef
from skillweave.weave.card import WeaveCard, check_part

FOLDER = "backbone"
"""The subfolder of a weave for the delta."""


def check_backbone(delta: Delta, backbone: Base) -> BaseRef:
    """The base that ``delta`` names. Raises :class:`UserError` unless that base + delta is ``backbone``."""
    path = resolve(delta.base_ref)
    delta.check_base(fingerprint(path), delta.base_ref)
    if (made := fingerprint(delta.on(Checkpoint(path)))) != backbone.fingerprint:
        shown, wanted = shortened(made, backbone.fingerprint)
        raise UserError(
            f"the backbone's delta makes {shown} of {delta.base_ref}, and {backbone.ref} is {wanted}: "
            "give the model that the delta makes (skillweave.delta.write_tuned writes "
            f"it), or the delta that made this one"
        )
    local = Path(delta.base_ref).expanduser()
    return BaseRef(ref=str(local.resolve()) if local.exists() else delta.base_ref, fingerprint=delta.base_fingerprint)


def save_backbone(backbone: Delta | str | Path, weave: Path) -> None:
    """Write the delta into the weave. From a folder, the files that its card names are copied byte for byte."""
    if isinstance(backbone, Delta):
        backbone.save_pretrained(weave / FOLDER)
    else:
        Folder(backbone, DELTA_FILE, AGAIN).copy(read_delta_card(Path(backbone)).files, weave / FOLDER)


def read_backbone(weave: Path, card: WeaveCard) -> Delta:
    """The delta of a weave that has a backbone. Raises :class:`UserError` if it was exchanged or is missing."""
    if not is_delta(weave / FOLDER):
        raise UserError(f"{weave / FOLDER} is missing: the weave is incomplete. Copy or build it again.")
    check_part(weave, card, f"{FOLDER}/{DELTA_FILE}")
    return Delta.from_pretrained(weave / FOLDER)


def lay_on(base: Base, weave: Path, card: WeaveCard, expected: str) -> Base:
    """The backbone of the weave: ``base``, open as its files hold it in any dtype, with the delta added in place.

    Raises :class:`UserError`, before anything is changed, unless the delta belongs on ``base`` and makes the
    fingerprint ``expected`` of its files.
    """
    delta = read_backbone(weave, card)
    if delta.base_fingerprint != base.fingerprint:
        raise UserError(
            f"{weave / FOLDER} belongs on another base than the weave ({delta.base_ref}): it was exchanged. "
            f"Copy or build the weave again."
        )
    delta.check_base(base.fingerprint, base.ref, base.model.config)
    # Of the files, not of the model in memory: each tensor is summed as stored, then cast to the model's dtype.
    tuned = delta.on(base.checkpoint)
    if (made := fingerprint(tuned)) != expected:
        shown, wanted = shortened(made, expected)
        raise UserError(
            f"{weave / FOLDER} makes {shown} of {base.ref}, and weave.json names {wanted}: it is "
            f"another backbone than the packs were made on. Copy or build the weave again."
        )
    delta.on(Checkpoint(base.model))  # raises where the model in memory does not have the tensors of its files
    opened = tuned_base(base, tuned, delta.carried, in_place=True, known_fingerprint=expected)
    return replace(opened, ref=f"{base.ref} with {weave / FOLDER}")
