"""The codec ``delta-come``, which SkillZip is compared with: singular vectors at widths that fall along the rank.

Delta-CoMe (Ping et al., NeurIPS 2024, arXiv 2406.08903) decomposes the change of a weight, R = U S V^T, and quantises
the singular vectors of the largest singular values with more bits than the others: the first 2 with 8 bits, the next 32
with 3, the rest with 2, in groups of 128 with a scale each [paper]. The rest are as many as the budget holds; the
vectors after them are dropped. All matrices have the same number of vectors, up to their full rank.

We differ:

* The authors round with GPTQ on calibration text, band by band, B before A. So does this codec with
  ``activation_aware``, but in the order of the columns, on inputs of the base, and with ``shrink`` of the identity in
  their second moment, where the authors have 0.01 and far more text (:mod:`skillweave.skillzip.gptq`).
  Without it every number becomes its nearest code. The scales of groups with 2 or 3 bits are searched for the least
  squared error [ours].
* Groups lie along each singular vector, and S is in their scales, half of it on either side [ours]. The authors'
  public code writes no packed file; it adds the rounded matrix to the base.
* Narrow codes stand for odd multiples of half a step (-3, -1, 1, 3), so that all four of 2 bits are used without a zero
  point [ours].
"""

from __future__ import annotations

import torch

from skillweave.pack import MixedEntry, dequantise_groups, pack_codes, quantise_groups
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import largest_rank
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.gptq import gptq_columns, gptq_rows
from skillweave.skillzip.lowrank import balanced, decompose, shrink
from skillweave.skillzip.plan import Piece
from skillweave.skillzip.source import MatrixSource

_LEADING = ((8, 2), (3, 32))
"""(bits, number of vectors) of the leading bands."""
_TAIL = 2
"""Bits of all vectors after the leading bands."""


def delta_come(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return every matrix with the most singular vectors whose pack fits the budget, or all if it has fewer."""

    def entry(piece: Piece, rank: int) -> MixedEntry:
        return MixedEntry(
            shape=piece.entry_shape,
            bands=bands(min(rank, *piece.shape)),
            group_size=config.group_size,
            transposed=piece.transposed,
        )

    def entries(rank: int) -> dict[str, MatrixEntry]:
        return {key: entry(piece, rank) for key, piece in source.plan.pieces.items()}

    rank = largest_rank(draft, entries)
    tensors: dict[str, torch.Tensor] = {}
    with bar("mixed widths", len(source.shapes)) as advance:
        for groups in source.moment_batches():
            moments = source.moments(groups) if config.needs_calibration else {}
            for group in groups:
                moment = shrink(moments[group].second, config.shrink) if group in moments else None
                for key in source.plan.groups[group]:
                    matrix = source.matrix(key)
                    left, right = balanced(decompose(matrix, rank).U, matrix)
                    written = entry(source.plan.pieces[key], rank)
                    tensors[f"{key}.codes"], tensors[f"{key}.scale"] = encoded(left, right, written, moment)
                    advance()
    return Encoded(entries(rank), tensors)


def bands(rank: int) -> list[tuple[int, int]]:
    """Return (bits, number of vectors) of the bands of ``rank`` singular vectors."""
    found: list[tuple[int, int]] = []
    for bits, most in _LEADING:
        if count := min(most, rank):
            found.append((bits, count))
        rank -= count
    return [*found, (_TAIL, rank)] if rank else found


def encoded(
    left: torch.Tensor, right: torch.Tensor, entry: MixedEntry, moment: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tensors ``codes`` (1, bytes) and ``scale`` (1, groups) of the factors A (out, rank), B (rank, in).

    With the second moment (in, in) of the layer's input, the factors are rounded by GPTQ.
    """
    codes: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    first, size = 0, entry.group_size
    for bits, count in entry.bands:
        own_left, own_right = left.T[first : first + count], right[first : first + count]
        if moment is None:
            blocks = [quantise_groups(vectors, bits, size) for vectors in (own_left, own_right)]
        else:
            rounded = gptq_rows(own_right, moment, bits, size)
            reached = dequantise_groups(*rounded, bits, size)
            blocks = [gptq_columns(own_left, reached @ moment @ reached.T, bits, size), rounded]
        for quantised, scale in blocks:
            codes.append(pack_codes(quantised, bits).flatten())
            scales.append(scale.flatten())
        first += count
    return torch.cat(codes)[None], torch.cat(scales)[None]
