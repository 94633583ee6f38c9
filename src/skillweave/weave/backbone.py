"""The backbone of a weave: the base plus a delta that all packs share, so that every skill inherits its changes.

A weave stores the delta and the name of the base, not the tuned model. The model opened from them is bit for bit the
one that :func:`skillweave.delta.write_tuned` writes and ``open_base`` opens: each changed tensor is summed in the
base's stored dtype first, and only then cast to the dtype in which it is served. [ours]
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
"""The folder of the delta in the weave."""


def check_backbone(delta: Delta, backbone: Base) -> BaseRef:
    """The base that ``delta`` names. Raises :class:`UserError` unless base + delta is ``backbone``."""
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
    """The delta of a weave with a backbone. Raises :class:`UserError` if it is not the delta that the weave names."""
    if not is_delta(weave / FOLDER):
        raise UserError(f"{weave / FOLDER} is missing: the weave is incomplete. Copy or build it again.")
    check_part(weave, card, f"{FOLDER}/{DELTA_FILE}")
    return Delta.from_pretrained(weave / FOLDER)


def lay_on(base: Base, weave: Path, card: WeaveCard, expected: str) -> Base:
    """Add the weave's delta to ``base`` in place, and return the result: the backbone.

    ``base`` is open in any dtype, with the values of its files. Raises :class:`UserError`, before anything is changed,
    if the delta belongs on another base, or base + delta does not have the fingerprint ``expected``.
    """
    delta = read_backbone(weave, card)
    if delta.base_fingerprint != base.fingerprint:
        raise UserError(
            f"{weave / FOLDER} belongs on another base than the weave ({delta.base_ref}): it was replaced. "
            f"Copy or build the weave again."
        )
    # The sum uses the files, not the model in memory: each tensor is summed as stored, then cast to the model's dtype.
    tuned = delta.on(base.checkpoint)
    if (made := fingerprint(tuned)) != expected:
        shown, wanted = shortened(made, expected)
        raise UserError(
            f"{weave / FOLDER} makes {shown} of {base.ref}, and weave.json names {wanted}: it is "
            f"another backbone than the packs were made on. Copy or build the weave again."
        )
    delta.on(Checkpoint(base.model))  # raises if the model in memory does not have the tensors of its files
    opened = tuned_base(base, tuned, delta.carried, in_place=True, known_fingerprint=expected)
    return replace(opened, ref=f"{base.ref} with {weave / FOLDER}")
