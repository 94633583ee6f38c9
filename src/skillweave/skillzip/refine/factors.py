"""The factors of a pack as floats, their rounding as the pack stores it, and the pack with new factors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skillweave.pack import FactorsEntry, LowRankEntry, Skillpack, quantise_rows, stored_rows

FactorEntry = LowRankEntry | FactorsEntry


def float_factors(pack: Skillpack, name: str) -> dict[str, torch.Tensor]:
    """Return both factors of an entry in float32, as ``name.A`` (out, rank) and ``name.B`` (rank, in).

    They are what the codes mean, without the smoothing: delta = A B diag(1 / smooth).
    """
    if isinstance(pack.card.entries[name], FactorsEntry):
        return {f"{name}.{part}": pack.tensors[f"{name}.{part}"].float() for part in "AB"}
    parts = pack.lowrank_parts(name)
    return {
        f"{name}.A": parts.A.float() * parts.A_scale.float()[:, None],
        f"{name}.B": parts.B.float() * parts.B_scale.float()[:, None],
    }


def rounded(factor: torch.Tensor, entry: FactorEntry) -> torch.Tensor:
    """Return a factor as it is read back from a pack: float32, of the same shape.

    The codes and the scale of each row are chosen anew, as the codec chooses them. Raises ValueError for NaN, infinity
    and numbers that no scale can hold.
    """
    if isinstance(entry, FactorsEntry):
        return factor.bfloat16().float()
    codes, scale = quantise_rows(factor, entry.bits)
    return codes.float() * scale.float()[:, None]


def with_factors(pack: Skillpack, factors: Mapping[str, torch.Tensor]) -> Skillpack:
    """Return a pack with the same entries and other factors, which are rounded; names as :func:`float_factors` gives.

    Its card is a copy. The size of every tensor stays as it was.
    """
    tensors = dict(pack.tensors)
    for key, factor in factors.items():
        entry = pack.card.entries[key.rpartition(".")[0]]
        if isinstance(entry, LowRankEntry):
            tensors[key], tensors[f"{key}_scale"] = stored_rows(factor.cpu(), entry.bits)
        else:
            tensors[key] = factor.cpu().bfloat16()
    return Skillpack(pack.card.model_copy(deep=True), tensors, pack.carried)
