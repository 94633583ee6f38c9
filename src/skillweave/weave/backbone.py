"""The backbone of a weave: the base plus a delta that all packs share, so that every skill inherits its changes.

A weave stores the delta and the name of the base, not the tuned model. The model opened from them is bit for bit the
one that :func:`skillweave.delta.write_tuned` writes and ``open_base`` opens: each changed tensor is summed in the
base's stored dtype first, and only then cast to the dtype in which it is served. [ours]
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
"""The folder of the delta in the weave."""


class _Tuned(Checkpoint):
    """The tensors of base + delta, read one at a time, as :func:`~skillweave.delta.write_tuned` writes them."""

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
    """The fingerprint of the folder that ``write_tuned`` would write. Nothing is written; memory is that of one tensor.

    ``base`` is the Hugging Face folder of the base of ``delta``. Raises :class:`UserError` if the delta does not fit.
    """
    return hash_tensors(_Tuned(base, delta))


def check_backbone(delta: Delta, backbone: Base) -> BaseRef:
    """The base that ``delta`` names. Raises :class:`UserError` unless base + delta is ``backbone``."""
    path = resolve(delta.base_ref)
    delta.check_base(fingerprint(path), delta.base_ref)
    if (actual := tuned_fingerprint(path, delta)) != backbone.fingerprint:
        made, wanted = shortened(actual, backbone.fingerprint)
        raise UserError(
            f"the backbone's delta makes {made} of {delta.base_ref}, and {backbone.ref} is {wanted}: "
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


@torch.no_grad()
def lay_on(base: Base, weave: Path, card: WeaveCard, expected: str) -> Base:
    """Add the weave's delta to ``base`` in place, and return the result: the backbone.

    ``base`` is open in any dtype, with the values of its files. Raises :class:`UserError`, and then changes nothing,
    if the delta belongs on another base, or base + delta does not have the fingerprint ``expected``.
    """
    delta = read_backbone(weave, card)
    if delta.base_fingerprint != base.fingerprint:
        raise UserError(
            f"{weave / FOLDER} belongs on another base than the weave ({delta.base_ref}): it was replaced. "
            f"Copy or build the weave again."
        )
    tuned = _Tuned(base.path, delta)
    if (actual := hash_tensors(tuned)) != expected:
        made, wanted = shortened(actual, expected)
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
