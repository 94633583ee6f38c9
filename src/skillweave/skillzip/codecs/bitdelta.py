"""The codec ``bitdelta``, which SkillZip is compared with: the sign of every number, and one scale for each matrix.

BitDelta (arXiv 2402.10193) writes the change R of a weight as ``scale * sign(R)`` with ``scale = mean |R|``, which has
the least squared error for these signs [paper]. The sign of 0 is +, as in the authors' code.

We differ:

* The authors then train the scales so that the logits come near to the specialist's (scale distillation). Here that
  is the refinement, which every codec shares (``refine``; without it the scales stay the means): it compares
  probabilities by their KL, where the authors take the squared error of logits, and its prompts are those of the task,
  where theirs are general text [ours].
* The authors write the linear layers of the blocks and keep embeddings, heads and norms as they are. Here the signs of
  every matrix are stored, embeddings and heads included, because a pack counts all its bytes [ours]: with their rule,
  the pack of a small model would be several times larger. Norms and biases follow ``other``, as with every codec.
"""

from __future__ import annotations

import torch

from skillweave.pack import GroupedEntry, pack_codes, quantise_signs
from skillweave.progress import bar
from skillweave.skillzip.codecs.fitting import check_fits
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded, MatrixEntry
from skillweave.skillzip.source import MatrixSource


def bitdelta(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return the signs and the scale of every matrix. Raises :class:`UserError` if they do not fit the budget."""
    entries: dict[str, MatrixEntry] = {
        key: GroupedEntry(shape=piece.entry_shape, bits=1, transposed=piece.transposed)
        for key, piece in source.plan.pieces.items()
    }
    check_fits(draft, entries)
    tensors: dict[str, torch.Tensor] = {}
    with bar("signs", len(entries)) as advance:
        for key in entries:
            codes, tensors[f"{key}.scale"] = quantise_signs(source.matrix(key))
            tensors[f"{key}.codes"] = pack_codes(codes, 1)
            advance()
    return Encoded(entries, tensors)
