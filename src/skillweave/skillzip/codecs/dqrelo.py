"""The codec ``dqrelo``, which SkillZip is compared with: signs with one scale, and a low rank for what they leave.

D-QReLO (arXiv 2604.16940) combines "coarse-grained one-bit quantization" of the change R with a "compensated residual
low-rank approximation" of the error that this makes [abstract]. We have read the abstract only, and have seen no code:

* The one-bit part is that of ``bitdelta``: ``scale * sign(R)`` with ``scale = mean |R|`` [ours].
* The low rank is the truncated SVD of ``R - scale * sign(R)``, with the scale as it is stored, in bf16 and with one
  rank for all matrices [ours]. The abstract does not say what "compensated" adds to this.
* The signs alone take 1/16 of the matrices in bf16, so no smaller pack exists.
"""

from __future__ import annotations

import torch

from skillweave.pack import GroupedEntry, dequantise_groups, pack_codes, quantise_signs
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import largest_rank
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.lowrank import balanced, decompose
from skillweave.skillzip.source import MatrixSource


def dqrelo(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return the signs of every matrix, and their residual at the largest rank whose pack fits the budget."""

    def entries(rank: int) -> dict[str, MatrixEntry]:
        return {
            key: GroupedEntry(
                shape=piece.entry_shape, bits=1, rank=min(rank, *piece.shape), transposed=piece.transposed
            )
            for key, piece in source.plan.pieces.items()
        }

    rank = largest_rank(draft, entries)
    tensors: dict[str, torch.Tensor] = {}
    with bar("signs and residuals", len(source.shapes)) as advance:
        for key in source.shapes:
            matrix = source.matrix(key)
            codes, scale = quantise_signs(matrix)
            residual = matrix - dequantise_groups(codes, scale, 1, None)
            left, right = balanced(decompose(residual, rank).U, residual)
            tensors[f"{key}.codes"], tensors[f"{key}.scale"] = pack_codes(codes, 1), scale
            tensors[f"{key}.A"], tensors[f"{key}.B"] = left.bfloat16(), right.bfloat16()
            advance()
    return Encoded(entries(rank), tensors)
