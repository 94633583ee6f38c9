"""The codec ``none``, which every other codec is measured against: the difference itself, in bf16."""

from __future__ import annotations

import torch

from skillweave.pack import DifferenceEntry
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import check_fits
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.source import MatrixSource


def none(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return every matrix in bf16, as its tensor is stored. Raises :class:`UserError` if they do not fit the budget."""
    pieces = source.plan.pieces
    entries: dict[str, MatrixEntry] = {key: DifferenceEntry(shape=piece.entry_shape) for key, piece in pieces.items()}
    check_fits(draft, entries)
    tensors: dict[str, torch.Tensor] = {}
    with bar("differences in bf16", len(entries)) as advance:
        for key, piece in pieces.items():
            matrix = source.matrix(key)
            stored = matrix.T if piece.transposed else matrix
            tensors[key] = stored.reshape(piece.entry_shape).bfloat16().contiguous()
            advance()
    return Encoded(entries, tensors)
