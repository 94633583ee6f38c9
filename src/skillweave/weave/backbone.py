"""The backbone of a weave: the base plus a delta that all its packs share, so that every skill inherits it.

A weave keeps the delta and the name of the base, not the tuned model. What is opened from them is, to the bit, what
:func:`skillweave.delta.write_tuned` writes and ``open_base`` then opens: each changed tensor is summed in the base's
stored dtype first, and only then cast to the dtype it is served in. [ours]
"""

from __future__ import annotations

from pathlib import Path

import torch

from skillweave.base import Base, Checkpoint, fingerprint, resolve
from skillweave.base.fingerprint import hash_tensors
from skillweave.delta import Delta
from skillweave.delta.schema import AGAIN, DELTA_FILE, is_delta
from skillweave.delta.schema import read_card as read_delta_card
from skillweave.delta.voice import carried_generation, carried_tokenizer
from skillweave.errors import UserError
from skillweave.files.folder import Folder
from skillweave.files.hashes import shortened
from skillweave.pack import BaseRef
from skillweave.weave.card import WeaveCard, check_part

FOLDER = "backbone"
"""Where the delta lies in the weave."""


class _Tuned(Checkpoint):
    """The tensors of base + delta, one at a time, as :func:`~skillweave.delta.write_tuned` writes them."""

    def __init__(self, base: Path, delta: Delta) -> None:
        super().__init__(base)
        self._delta = delta
        delta.check_fits(self)

    def tensor(self, name: str) -> torch.Tensor:
        stored = super().tensor(name)
        if name not in self._delta:
            return stored
        return self._delta.laid_on(name, stored)


def tuned_fingerprint(base: Path, delta: Delta) -> str:
    """The fingerprint of the folder that ``write_tuned`` would write; memory is that of one tensor, nothing is written.

    ``base`` is the Hugging Face folder that ``delta`` belongs on. Raises :class:`UserError` where it does not fit.
    """
    return hash_tensors(_Tuned(base, delta))


def check_backbone(delta: Delta, backbone: Base) -> BaseRef:
    """The base that ``delta`` names, once it is sure that base + delta is ``backbone``. Raises :class:`UserError`."""
    path = resolve(delta.base_ref)
    delta.check_base(fingerprint(path), delta.base_ref)
    if (found := tuned_fingerprint(path, delta)) != backbone.fingerprint:
        made, wanted = shortened(found, backbone.fingerprint)
        raise UserError(
            f"the backbone's delta makes {made} of {delta.base_ref}, and {backbone.ref} is {wanted}: "
            "give the model that the delta makes (skillweave.delta.write_tuned writes "
            f"it), or the delta that made this one"
        )
    local = Path(delta.base_ref).expanduser()
    return BaseRef(ref=str(local.resolve()) if local.exists() else delta.base_ref, fingerprint=delta.base_fingerprint)


def save_backbone(backbone: Delta | str | Path, weave: Path) -> None:
    """Put the delta into the weave: of a folder the files that its card names, byte for byte."""
    if isinstance(backbone, Delta):
        backbone.save_pretrained(weave / FOLDER)
    else:
        Folder(backbone, DELTA_FILE, AGAIN).copy(read_delta_card(Path(backbone)).files, weave / FOLDER)


def read_backbone(weave: Path, card: WeaveCard) -> Delta:
    """The delta of a weave that has a backbone. Raises :class:`UserError` where it is not the one it was woven with."""
    if not is_delta(weave / FOLDER):
        raise UserError(f"{weave / FOLDER} is missing: the weave is incomplete. Copy or build it again.")
    check_part(weave, card, f"{FOLDER}/{DELTA_FILE}")
    return Delta.from_pretrained(weave / FOLDER)


@torch.no_grad()
def lay_on(base: Base, weave: Path, card: WeaveCard, expected: str) -> Base:
    """The backbone of the weave: ``base``, open as its files hold it in any dtype, with the delta added in place.

    Nothing is changed unless the delta belongs on ``base`` and makes the fingerprint ``expected`` of its files;
    otherwise :class:`UserError`.
    """
    delta = read_backbone(weave, card)
    if delta.base_fingerprint != base.fingerprint:
        raise UserError(
            f"{weave / FOLDER} belongs on another base than the weave ({delta.base_ref}): it was exchanged. "
            f"Copy or build the weave again."
        )
    tuned = _Tuned(base.path, delta)
    if (found := hash_tensors(tuned)) != expected:
        made, wanted = shortened(found, expected)
        raise UserError(
            f"{weave / FOLDER} makes {made} of {base.ref}, and weave.json names {wanted}: it is "
            f"another backbone than the packs were made on. Copy or build the weave again."
        )
    model = base.model
    delta.check_fits(Checkpoint(model))
    if (rows := delta.vocabulary_size(tuned)) is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    state = model.state_dict()
    for name in delta.names():
        state[name].copy_(tuned.tensor(name))
    tokenizer, generation = carried_tokenizer(delta.carried, base), carried_generation(delta.carried)
    if generation is not None:
        model.generation_config = generation
    return Base(model, tokenizer, expected, f"{base.ref} with {weave / FOLDER}", base.path, in_memory=True)
