"""The factors of a pack as floats, their rounding as the pack stores it, and the pack with new factors.

The one scale of a matrix of signs (codec ``bitdelta``) counts as a factor, too: it is trained, and its signs are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch

from skillweave.pack import Entry, FactorsEntry, GroupedEntry, LowRankEntry, Skillpack, quantise_rows, stored_rows
from skillweave.pack.integers import LARGEST_SCALE
from skillweave.pack.schema import is_coded
from skillweave.skillzip.steps import ROUND_UP, rounded_codes

FactorEntry = LowRankEntry | FactorsEntry | GroupedEntry
"""An entry whose factors can be trained; see :func:`has_factors`."""
_COARSER, _COARSEST = 1.02, 4.0


def has_factors(entry: Entry) -> TypeGuard[FactorEntry]:
    """Return whether an entry is one matrix in two factors, or in signs with one scale."""
    if isinstance(entry, GroupedEntry):
        return entry.bits == 1 and entry.group_size is None and not entry.rank and not entry.stacked
    return isinstance(entry, LowRankEntry | FactorsEntry)


def float_factors(pack: Skillpack, name: str) -> dict[str, torch.Tensor]:
    """Return both factors of an entry in float32, as ``name.A`` (out, rank) and ``name.B`` (rank, in).

    They are what the codes mean, without the smoothing: delta = A B diag(1 / smooth). Of a coded entry, which has one
    scale for both factors, each gets the square root. Of signs, return ``name.scale`` (1,).
    """
    if isinstance(pack.card.entries[name], GroupedEntry):
        return {f"{name}.scale": pack.tensors[f"{name}.scale"].clone()}
    if isinstance(pack.card.entries[name], FactorsEntry):
        return {f"{name}.{part}": pack.tensors[f"{name}.{part}"].float() for part in "AB"}
    parts = pack.lowrank_parts(name)
    if is_coded(pack.card.entries[name]):
        step = parts.B_scale.float().sqrt()
        return {f"{name}.A": parts.A.float() * step, f"{name}.B": parts.B.float() * step[:, None]}
    return {
        f"{name}.A": parts.A.float() * parts.A_scale.float()[:, None],
        f"{name}.B": parts.B.float() * parts.B_scale.float()[:, None],
    }


def steps(pack: Skillpack, coarser: float = 1.0) -> dict[str, torch.Tensor]:
    """Return the step between two codes for each factor of a coded entry, ``coarser`` times as large as the pack's.

    By the names of :func:`float_factors`; (rank,) for A and (rank, 1) for B, so that factors can be divided by them.
    """
    found: dict[str, torch.Tensor] = {}
    for name, entry in pack.card.entries.items():
        if isinstance(entry, LowRankEntry) and is_coded(entry):
            step = _coarse(pack.tensors[f"{name}.B_scale"], coarser).float().sqrt()
            found |= {f"{name}.A": step, f"{name}.B": step[:, None]}
    return found


def rounded(factor: torch.Tensor, entry: FactorEntry, step: torch.Tensor | None = None) -> torch.Tensor:
    """Return a factor as it is read back from a pack: float32, of the same shape.

    The codes of a coded entry are chosen for its ``step``. For others, the scale of each row is chosen anew, too, as
    the codec chooses it. The scale of signs is stored as it is, but never below 0. Raises ValueError for NaN, infinity
    and numbers that no scale can hold.
    """
    if isinstance(entry, GroupedEntry):
        return factor.clamp(0, LARGEST_SCALE).abs()  # without the sign of a zero
    if isinstance(entry, FactorsEntry):
        return factor.bfloat16().float()
    if is_coded(entry):
        if step is None:
            raise ValueError("the factors of a coded entry are rounded by its steps")
        return rounded_codes(factor, step) * step
    codes, scale = quantise_rows(factor, entry.bits)
    return codes.float() * scale.float()[:, None]


def spread(codes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each code at a random place of the range of numbers that rounds to it, in steps [ours].

    Float factors that all begin in the middle of their range change no code for many steps of training, and then very
    many at once. Spread over the range, the share of codes that change grows with the way that the numbers move.
    ``codes`` and the result are whole numbers and numbers in float32, of the same shape.
    """
    place = 0.01 + 0.98 * torch.rand(codes.shape, generator=generator).to(codes.device)  # not on an edge
    low = torch.where(codes == 0, -ROUND_UP, codes.abs() - (1 - ROUND_UP))
    number = low + place * (codes.abs() + ROUND_UP - low)
    return torch.where(codes < 0, -number, number)


def with_factors(pack: Skillpack, factors: Mapping[str, torch.Tensor], coarser: float = 1.0) -> Skillpack:
    """Return a pack with the same entries and other factors, which are rounded; names as :func:`float_factors` gives.

    Its card is a copy. The steps of coded entries become ``coarser`` times as large.
    """
    tensors = dict(pack.tensors)
    own = steps(pack, coarser)
    for key, factor in factors.items():
        name = key.rpartition(".")[0]
        entry = pack.card.entries[name]
        if key in own:
            tensors[key] = rounded_codes(factor.detach().cpu(), own[key]).to(torch.int8)
            tensors[f"{name}.B_scale"] = _coarse(pack.tensors[f"{name}.B_scale"], coarser)
        elif isinstance(entry, LowRankEntry):
            tensors[key], tensors[f"{key}_scale"] = stored_rows(factor.cpu(), entry.bits)
        elif isinstance(entry, GroupedEntry):
            tensors[key] = rounded(factor.detach().cpu(), entry)
        else:
            tensors[key] = factor.cpu().bfloat16()
    return Skillpack(pack.card.model_copy(deep=True), tensors, pack.carried)


def coarseness(pack: Skillpack, factors: Mapping[str, torch.Tensor], most: int) -> float:
    """Return how many times as large the steps must become so that the pack with ``factors`` takes ``most`` bytes.

    It is 1 if it fits as it is, and grows by 2% at a time. Entropy-coded factors take more bytes when their codes grow.
    """
    coarser = 1.0
    while coarser < _COARSEST and with_factors(pack, factors, coarser).nbytes > most:
        coarser *= _COARSER
    return coarser


def _coarse(scale: torch.Tensor, coarser: float) -> torch.Tensor:
    return scale if coarser == 1 else (scale.float() * coarser**2).bfloat16()
