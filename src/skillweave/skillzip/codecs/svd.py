"""The peer: a plain truncated SVD in bf16, of one rank for all matrices."""

from __future__ import annotations

from skillweave.pack import FactorsEntry
from skillweave.progress import bar
from skillweave.skillzip.job import Job, MatrixEntry, Written
from skillweave.skillzip.lowrank import balanced, decompose


def svd(job: Job) -> Written:
    """The largest rank whose pack fits the budget; a matrix with fewer ranks than that gets all it has."""

    def entries(rank: int) -> dict[str, MatrixEntry]:
        return {
            key: FactorsEntry(shape=piece.entry_shape, rank=min(rank, *piece.shape), transposed=piece.transposed)
            for key, piece in job.plan.pieces.items()
        }

    low, high = 0, max(min(shape) for shape in job.shapes.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if job.free_bytes(entries(middle)) >= 0 else (low, middle - 1)
    if low == 0:
        raise job.refuse(entries(1))
    chosen = entries(low)
    tensors = {}
    with bar("truncated SVD", len(chosen)) as advance:
        for name in chosen:
            matrix = job.read(name)
            left, right = balanced(decompose(matrix, low).U, matrix)
            tensors[f"{name}.A"], tensors[f"{name}.B"] = left.bfloat16(), right.bfloat16()
            advance()
    return Written(chosen, tensors)
