"""The codec ``svd``, which SkillZip is compared with: a plain truncated SVD in bf16, with one rank for all matrices.

This is also what a LoRA extractor writes: the two factors of the truncated SVD at one rank. Extractors differ only in
how they split the singular values between the factors, which changes nothing but the rounding to bf16. Here each
factor gets the square root.
"""

from __future__ import annotations

from skillweave.pack import FactorsEntry
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import largest_rank
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.lowrank import balanced, decompose
from skillweave.skillzip.source import MatrixSource


def svd(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return every matrix at the largest rank whose pack fits the budget, or at its full rank if that is smaller."""

    def entries(rank: int) -> dict[str, MatrixEntry]:
        return {
            key: FactorsEntry(shape=piece.entry_shape, rank=min(rank, *piece.shape), transposed=piece.transposed)
            for key, piece in source.plan.pieces.items()
        }

    rank = largest_rank(draft, entries)
    tensors = {}
    with bar("truncated SVD", len(source.shapes)) as advance:
        for key in source.shapes:
            matrix = source.matrix(key)
            left, right = balanced(decompose(matrix, rank).U, matrix)
            tensors[f"{key}.A"], tensors[f"{key}.B"] = left.bfloat16(), right.bfloat16()
            advance()
    return Encoded(entries(rank), tensors)
