"""Measure one way to share: what packs keep at each size, and what the backbone says without a pack."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.closeness import kl_of_rows
from benchmarks.zip_shared.groups import DEMO, Group, Member, micro_group, small_group
from benchmarks.zip_shared.merge import Tensors, cosine, mean, minus, norm, task_arithmetic, ties
from benchmarks.zip_shared.squeeze import Kept, SharedBasis, Squeezed, moved
from skillweave.base import Base

NONE, MEAN, ARITHMETIC, TIES = "none", "mean", "task-arithmetic", "ties"
COUNTED, BASIS = "mean, its bytes counted", "shared basis"
ARMS = (NONE, MEAN, COUNTED, TIES, ARITHMETIC, BASIS)
FREE = (MEAN, TIES, ARITHMETIC)
"""The ways whose shared part takes no bytes."""
PAID = (COUNTED, BASIS)
NO_PACK = "no pack"
RATIOS = ("1/32", "1/64", "1/128", "1/256", "1/512")
TUNED_AT = "1/128"
FACTORS = (0.5, 1.0, 1.5)
"""What task arithmetic is tuned over: the sum of K deltas times one of these over K. 1 is the mean."""


@dataclass(frozen=True)
class Cell:
    """One way to share among the packs of one group, at all sizes. ``weave`` is the build of the scale ``small``."""

    relation: str
    packs: int
    seed: int
    arm: str
    ratios: tuple[str, ...]
    prompts: int
    quick: bool
    weave: str | None = None


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the rows of a cell: one for each pack and size, and one for each pack that is not there."""
    began = time.monotonic()
    group = _group(cell.relation, cell.packs, cell.seed, cell.prompts, cell.quick, cell.weave, folder)
    rows = list(_shared_basis(group, cell.ratios) if cell.arm == BASIS else _merged(group, cell.arm, cell.ratios))
    about = {key: asdict(cell)[key] for key in ("relation", "packs", "seed", "arm")}
    return {"rows": [{**about, **row} for row in rows], "seconds": round(time.monotonic() - began, 1)}


@functools.lru_cache(maxsize=1)
def _group(relation: str, packs: int, seed: int, prompts: int, quick: bool, weave: str | None, folder: Path) -> Group:
    if relation == DEMO:
        return small_group(Path(weave or ""), folder, prompts)
    return micro_group(relation, packs, seed, folder, prompts, quick=quick)


# -- the ways to share -----------------------------------------------------------------------------------------------


def _merged(group: Group, arm: str, ratios: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a part that is merged into the backbone, or of none."""
    deltas = [member.tensors for member in group.members]
    factor = _tuned(group, deltas) if arm == ARITHMETIC else None
    shared = _shared_part(arm, deltas, factor)
    free = {"factor": factor} if factor is not None else {}
    if arm != COUNTED:
        similar = [cosine(one, other) for at, one in enumerate(deltas) for other in deltas[:at]]
        free |= {"cosine": round(statistics.fmean(similar), 3), "everyday_kl": _everyday(group, shared)}
        for member in group.members:
            yield {**_row(group.base, member, shared, None), **free, "ratio": NO_PACK}
    # The packs of the residuals are zipped anew for each size only if the shared part is another one.
    residuals = _residuals(group, shared)
    merged = Squeezed(shared, group.base) if arm == COUNTED and shared is not None else None
    for ratio in ratios:
        share = float(Fraction(ratio))
        given: Tensors | None = shared
        shared_bytes = 0
        if merged is not None:
            share *= len(deltas) / (len(deltas) + 1)
            kept = merged.at(share)
            if kept is None:
                continue
            given, shared_bytes = kept.tensors, kept.nbytes
            residuals = _residuals(group, given)
            free = {"everyday_kl": _everyday(group, given)}
        for member, residual in zip(group.members, residuals, strict=True):
            pack = residual.at(share)
            if pack is not None:
                row = _row(group.base, member, given, pack)
                yield {**row, **free, "pack_bytes": pack.nbytes + shared_bytes // len(deltas), "ratio": ratio}


def _shared_basis(group: Group, ratios: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of packs that share one basis for each matrix."""
    basis = SharedBasis([member.tensors for member in group.members], group.base)
    plain = Squeezed(group.members[0].tensors, group.base)
    for ratio in ratios:
        share = float(Fraction(ratio))
        alone = plain.at(share)
        packs = None if alone is None else basis.at(share, alone.card)
        for member, pack in zip(group.members, packs or [], strict=False):
            yield {**_row(group.base, member, None, pack), "pack_bytes": pack.nbytes, "ratio": ratio}


def _shared_part(arm: str, deltas: Sequence[Tensors], factor: float | None) -> dict[str, torch.Tensor] | None:
    if arm == ARITHMETIC:
        return task_arithmetic(deltas, (factor or 0.0) / len(deltas))
    merges: dict[str, Callable[[Sequence[Tensors]], dict[str, torch.Tensor]]] = {MEAN: mean, COUNTED: mean, TIES: ties}
    return merges[arm](deltas) if arm in merges else None


def _tuned(group: Group, deltas: Sequence[Tensors]) -> float:
    """Return the factor with the least KL on prompts that are not tested, packs of one size included."""
    ratio = float(Fraction(TUNED_AT))

    def loss(factor: float) -> float:
        shared = task_arithmetic(deltas, factor / len(deltas))
        packs = [residual.at(ratio) for residual in _residuals(group, shared)]
        return statistics.fmean(
            _kl(group.base, member.tuning, shared, pack and pack.tensors)
            for member, pack in zip(group.members, packs, strict=True)
        )

    return min(FACTORS, key=loss)


# -- measures --------------------------------------------------------------------------------------------------------


def _residuals(group: Group, shared: Tensors | None) -> list[Squeezed]:
    deltas = [member.tensors for member in group.members]
    return [Squeezed(delta if shared is None else minus(delta, shared), group.base) for delta in deltas]


def _row(base: Base, member: Member, shared: Tensors | None, pack: Kept | None) -> dict[str, Any]:
    """Return the KL from the specialist, and how far the weights are from its weights."""
    left = member.tensors if shared is None else minus(member.tensors, shared)
    lost = left if pack is None else minus(left, pack.tensors)
    whole = norm(member.tensors)
    return {
        "skill": member.name,
        "pack_bytes": 0,
        "delta_bytes": member.delta.bf16_nbytes,
        "kl": _kl(base, member.test, shared, pack and pack.tensors),
        "weight_error": round(norm(lost) / whole, 4),
        "residual": round(norm(left) / whole, 4),
    }


def _everyday(group: Group, shared: Tensors | None) -> float:
    """Return KL(base || base + shared part) along the base's own answers to everyday prompts."""
    return _kl(group.base, group.everyday, shared, None)


def _kl(base: Base, rows: Sequence[Any], *changes: Tensors | None) -> float:
    return float(f"{kl_of_rows(base.model, rows, lambda: moved(base, *changes)).mean():.5g}")
