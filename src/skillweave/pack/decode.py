"""Decode the entries of a pack: to the float delta, to integer factors, and as the integer recipe of run time.

All functions are pure. The recipe of run time is SkillZip's X8A8B8 / X8A4B4 ([digest], see
docs/explanation/skillzip.md): no weight is converted back to floats. :func:`reference_forward` is a slow implementation
of it, which the kernels of the weave are tested against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skillweave.pack.integers import dequantise_groups, unpack_codes, unpack_int4
from skillweave.pack.schema import (
    Entry,
    FactorsEntry,
    GroupedEntry,
    LowRankEntry,
    MixedEntry,
    RowsEntry,
    StackedEntry,
    WholeEntry,
    group_count,
    packed_width,
)


@dataclass(frozen=True)
class LowRank:
    """The integer factors of one matrix (out, in); four-bit codes are unpacked to int8."""

    A: torch.Tensor
    """int8 (out, rank)"""
    B: torch.Tensor
    """int8 (rank, in)"""
    A_scale: torch.Tensor
    """float16 (out,); ones if there is one scale for each rank"""
    B_scale: torch.Tensor
    """float16 (rank,), or bfloat16 if there is one scale for each rank"""
    smooth: torch.Tensor | None
    """float16 (in,), shared by the group, or None"""

    def dense(self) -> torch.Tensor:
        """Return diag(A_scale) A diag(B_scale) B diag(1 / smooth), float32 (out, in)."""
        left, right = self.factors()
        return left @ right

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return diag(A_scale) A (out, rank) and diag(B_scale) B diag(1 / smooth) (rank, in), both float32."""
        left = self.A.float() * self.A_scale.float()[:, None]
        right = self.B.float() * self.B_scale.float()[:, None]
        return left, right if self.smooth is None else right / self.smooth.float()


def lowrank_parts(tensors: Mapping[str, torch.Tensor], name: str, entry: LowRankEntry) -> LowRank:
    """Return the integer factors of a ``lowrank`` entry."""
    left, right = tensors[f"{name}.A"], tensors[f"{name}.B"]
    if entry.bits == 4:
        left, right = unpack_int4(left, entry.rank), unpack_int4(right, entry.matrix[1])
    smooth = tensors[f"{entry.group}.smooth"] if entry.smooth else None
    return LowRank(left, right, _row_scale(tensors, name, entry), tensors[f"{name}.B_scale"], smooth)


def decode(tensors: Mapping[str, torch.Tensor], name: str, entry: Entry) -> torch.Tensor:
    """Return the delta of one entry in float32.

    Raises ValueError for ``whole`` and ``rows`` entries, which are no differences from the base.
    """
    if isinstance(entry, WholeEntry | RowsEntry):
        raise ValueError(f"{name} is stored as tuned: it is not a difference from a tensor of the base")
    if isinstance(entry, StackedEntry):
        matrices = [_of_stack(tensors, name, entry, index) for index in range(len(entry.ranks))]
        return torch.stack(matrices).view(entry.shape)
    if isinstance(entry, GroupedEntry | MixedEntry) and entry.stacked:
        return torch.stack([coded_matrix(tensors, name, entry, index) for index in range(entry.matrices)]).view(
            entry.shape
        )
    if isinstance(entry, GroupedEntry | MixedEntry):
        matrix = coded_matrix(tensors, name, entry)
    elif isinstance(entry, LowRankEntry):
        matrix = lowrank_parts(tensors, name, entry).dense()
    elif isinstance(entry, FactorsEntry):
        matrix = tensors[f"{name}.A"].float() @ tensors[f"{name}.B"].float()
    else:
        return tensors[name].float()
    return (matrix.T.contiguous() if entry.transposed else matrix).view(entry.shape)


def coded_matrix(
    tensors: Mapping[str, torch.Tensor], name: str, entry: GroupedEntry | MixedEntry, index: int = 0
) -> torch.Tensor:
    """Return matrix ``index`` of a ``grouped`` or ``mixed`` entry, float32 (out, in)."""
    if isinstance(entry, MixedEntry):
        left, right = mixed_factors(tensors, name, entry, index)
        return left @ right
    out, in_ = entry.matrix
    rows = slice(index * out, (index + 1) * out)
    codes = unpack_codes(tensors[f"{name}.codes"][rows], in_, entry.bits)
    scale = tensors[f"{name}.scale"]
    own = scale[index : index + 1] if entry.group_size is None else scale[rows]
    matrix = dequantise_groups(codes, own, entry.bits, entry.group_size)
    if entry.rank:
        ranks = slice(index * entry.rank, (index + 1) * entry.rank)
        matrix += tensors[f"{name}.A"][rows].float() @ tensors[f"{name}.B"][ranks].float()
    return matrix


def mixed_factors(
    tensors: Mapping[str, torch.Tensor], name: str, entry: MixedEntry, index: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (out, rank) and B (rank, in) of matrix ``index`` of a ``mixed`` entry, both float32."""
    codes, scale = tensors[f"{name}.codes"][index], tensors[f"{name}.scale"][index]
    vectors: list[torch.Tensor] = []
    code_at = scale_at = 0
    for bits, count, length in entry.blocks():
        row_bytes, row_groups = packed_width(length, bits), group_count(length, entry.group_size)
        own = codes[code_at : code_at + count * row_bytes].view(count, row_bytes)
        scales = scale[scale_at : scale_at + count * row_groups].view(count, row_groups)
        vectors.append(dequantise_groups(unpack_codes(own, length, bits), scales, bits, entry.group_size))
        code_at += count * row_bytes
        scale_at += count * row_groups
    # Blocks alternate between A^T and B, one of each for every band.
    return torch.cat(vectors[0::2]).T.contiguous(), torch.cat(vectors[1::2])


def _of_stack(tensors: Mapping[str, torch.Tensor], name: str, entry: StackedEntry, index: int) -> torch.Tensor:
    """Return the delta of one matrix of a stack, float32 (out, in)."""
    ranks = entry.ranks_of(index)
    left, right = tensors[f"{name}.A"][:, entry.columns(index)], tensors[f"{name}.B"][ranks]
    if entry.bits == 16:
        return left.float() @ right.float()
    if entry.bits == 4:
        left, right = unpack_int4(left, entry.ranks[index]), unpack_int4(right, entry.shape[-1])
    row_scale = _row_scale(tensors, name, entry, index)
    return LowRank(left, right, row_scale, tensors[f"{name}.B_scale"][ranks], smooth=None).dense()


def _row_scale(
    tensors: Mapping[str, torch.Tensor], name: str, entry: LowRankEntry | StackedEntry, index: int | None = None
) -> torch.Tensor:
    """Return the scale of each row of A, of one matrix or of matrix ``index`` of a stack."""
    if entry.scales == "rank":
        return torch.ones(tensors[f"{name}.A"].shape[0], dtype=torch.float16)
    scale = tensors[f"{name}.A_scale"]
    return scale if index is None else scale[index]


def reference_forward(x: torch.Tensor, parts: LowRank) -> torch.Tensor:
    """Return what the delta adds to the layer's output by the integer recipe: float (..., in) -> float32 (..., out).

    Each token is rounded to int8 with a scale of its own before each of the two products. The products are exact: their
    range is that of int32, and they are computed in int64. Tokens of zeros and rows with scale 0 give 0.
    """
    u = x.float() if parts.smooth is None else x.float() / parts.smooth.float()
    codes, scale = _token_codes(u)
    hidden = (codes @ parts.B.long().T).float() * scale * parts.B_scale.float()
    codes, scale = _token_codes(hidden)
    return (codes @ parts.A.long().T).float() * scale * parts.A_scale.float()


def _token_codes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64 codes in [-127, 127] (..., n), and the scale (..., 1) of each token."""
    scale = values.abs().amax(dim=-1, keepdim=True) / 127
    codes = torch.where(scale > 0, values / scale, 0.0)
    return codes.round().long(), scale
