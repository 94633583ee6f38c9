"""The codec ``svd``, which SkillZip is compared with: a plain truncated SVD in bf16, with one rank for all matrices."""

from __future__ import annotations

from skillweave.pack import FactorsEntry
from skillweave.progress import bar
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

    low, high = 0, max(min(shape) for shape in source.shapes.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if draft.free_bytes(entries(middle)) >= 0 else (low, middle - 1)
    if low == 0:
        raise draft.refusal(entries(1))
    tensors = {}
    with bar("truncated SVD", len(source.shapes)) as advance:
        for key in source.shapes:
            matrix = source.matrix(key)
            left, right = balanced(decompose(matrix, low).U, matrix)
            tensors[f"{key}.A"], tensors[f"{key}.B"] = left.bfloat16(), right.bfloat16()
            advance()
    return Encoded(entries(low), tensors)
