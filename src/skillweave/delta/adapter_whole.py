"""Decide which of the tensors that an adapter holds in full change the base, also where the base ties tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.safetensors_io import Spec
from skillweave.delta.adapter_names import SAVED
from skillweave.delta.arithmetic import changed
from skillweave.errors import UserError


def without_copies(headers: Mapping[str, Spec], read: Callable[[str], torch.Tensor]) -> dict[str, Spec]:
    """The tensors of an adapter file without the further copies of modules in ``modules_to_save``.

    PEFT writes them when the vocabulary was resized: the module as it was before training (``original_module``), and
    the trained module once more under its plain name. A plain name with other values stays, for the caller to refuse.
    """
    copies = set()
    for trained in (name for name in headers if SAVED in name):
        copies.add(trained.replace(SAVED, ".original_module."))
        plain = trained.replace(SAVED, ".")
        if plain in headers and _equal(read(plain), read(trained)):
            copies.add(plain)
    return {name: spec for name, spec in headers.items() if name not in copies}


def settle_whole(
    whole: Mapping[str, str],
    read: Callable[[str], torch.Tensor],
    config: Mapping[str, Any],
    base: Checkpoint,
    file: Path,
) -> dict[str, str]:
    """Name of a base tensor -> name in the file, for the whole tensors that differ from the base's.

    ``whole`` has the same form, with all whole tensors; ``read`` gives a tensor by its name in the file.

    - PEFT saves embeddings beside the factors whenever it believes that they were resized, so many equal the base's.
    - PEFT loads a saved embedding into the parameter that two tied tensors share, so either name stands for both.
    - A tensor in ``modules_to_save`` is a copy for one of two tied tensors, which no delta of a tied base can hold.

    Raises :class:`UserError` for such a copy, and for two tied tensors with different values.
    """
    settled = dict(whole)
    for far, near in base.tied.items():
        ends = [end for end in (near, far) if end in settled]
        if len(ends) == 2 and not _equal(read(settled[near]), read(settled[far])):
            raise UserError(
                f"{file} holds '{near}' and '{far}' with different values, and {base.where} ties the two: untie the "
                f"base (give '{far}' a copy, set tie_word_embeddings=false, save it) and use that as the base"
            )
        if len(ends) == 1 and _copied_for_one(ends[0], config) and not _unchanged(read(settled[ends[0]]), base, near):
            other = far if ends[0] == near else near
            raise UserError(
                f"{file} changes '{ends[0]}', which {base.where} ties to '{other}': modules_to_save made a copy for "
                f"one of the two, a delta would change both. Untie the base (give '{other}' a copy, set "
                f"tie_word_embeddings=false, save it) and use that as the base."
            )
        if far in settled:
            raw = settled.pop(far)
            settled.setdefault(near, raw)
    return {name: raw for name, raw in settled.items() if name not in base or not _unchanged(read(raw), base, name)}


def check_token_rows(specs: Mapping[str, Spec], base: Checkpoint, file: Path) -> None:
    """Raise :class:`UserError` if with the adapter, embedding and head have different numbers of token rows."""
    rows = {
        name: (specs[name][0] if name in specs else base.shape(name))[0]
        for name in sorted(base.vocabulary_names())
        if name in base
    }
    if len(set(rows.values())) > 1:
        counts = " and ".join(f"{count} for '{name}'" for name, count in rows.items())
        raise UserError(
            f"{file}: with this adapter the base has different numbers of token rows: {counts}. The vocabulary was "
            f"resized, and PEFT saved only one of the two tensors. Merge the adapter where it was trained "
            f"(merge_and_unload, save_pretrained) and zip the result as --tuned."
        )


def _copied_for_one(name: str, config: Mapping[str, Any]) -> bool:
    module = name.rpartition(".")[0]
    listed = config.get("modules_to_save") or []
    return not config.get("ensure_weight_tying") and any(
        module == wanted or module.endswith(f".{wanted}") for wanted in listed
    )


def _unchanged(stored: torch.Tensor, base: Checkpoint, name: str) -> bool:
    """Whether a saved tensor is the base's tensor, rounded to the dtype that it was saved in."""
    return base.shape(name) == tuple(stored.shape) and _equal(stored, base.tensor(name).cpu().to(stored.dtype))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and not changed(one, other)
