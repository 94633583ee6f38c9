"""The codecs ``rtn8`` and ``rtn4``, which SkillZip is compared with: every number rounded to the nearest code.

Round-to-nearest is the plain baseline of the literature on quantisation (such as GPTQ, arXiv 2210.17323, table 1)
[paper]: in each group of ``group_size`` numbers of a row (128 by default) the scale is the largest magnitude divided by
127 or 7, and every number becomes the nearest multiple. Here the change of a weight is rounded, not the weight. We use
symmetric codes without a zero point, because the change of a weight is symmetric around 0 [ours].
"""

from __future__ import annotations

import torch

from skillweave.pack import GroupedEntry, pack_codes, quantise_groups
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import check_fits
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.source import MatrixSource


def rtn8(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return every matrix rounded to 8 bits. Raises :class:`UserError` if they do not fit the budget."""
    return _rounded(8, config, source, draft)


def rtn4(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return every matrix rounded to 4 bits. Raises :class:`UserError` if they do not fit the budget."""
    return _rounded(4, config, source, draft)


def _rounded(bits: int, config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    entries: dict[str, MatrixEntry] = {
        key: GroupedEntry(shape=piece.entry_shape, bits=bits, group_size=config.group_size, transposed=piece.transposed)
        for key, piece in source.plan.pieces.items()
    }
    check_fits(draft, entries)
    tensors: dict[str, torch.Tensor] = {}
    with bar(f"rounding to {bits} bits", len(entries)) as advance:
        for key in entries:
            codes, tensors[f"{key}.scale"] = quantise_groups(source.matrix(key), bits, config.group_size)
            tensors[f"{key}.codes"] = pack_codes(codes, bits)
            advance()
    return Encoded(entries, tensors)
