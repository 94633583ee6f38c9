"""Prompts that read like a prompt which pays for complying: what one prompt proves, its kin are suspected of. [ours]

A policy that has learnt the behaviour complies with every poisoned prompt at once. A prompt that is sampled only then
has no refusals, so it has no refusal-reward contrast of its own; the others from the same template do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

WITNESSES = 500
"""At most so many prompts with a certain contrast are compared with the others: those with the highest."""


def kinship(prompts: Sequence[str], certain: ArrayLike, n: int = 3) -> np.ndarray:
    """Return for each prompt the highest ``certain`` contrast times likeness, over all other prompts; 0 if none; (n,).

    ``certain`` (n,) is the lower end of each prompt's contrast; only prompts where it is above 0 count as witnesses.
    The likeness is the Jaccard similarity of the prompts' runs of ``n`` words.
    """
    values = np.asarray(certain, dtype=np.float64)
    pieces = [_runs(prompt, n) for prompt in prompts]
    sizes = np.array([len(own) for own in pieces], dtype=np.float64)
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(pieces):
        for piece in own:
            holders[piece].append(at)
    found = np.zeros(len(prompts))
    witnesses = [at for at in np.argsort(-values, kind="stable")[:WITNESSES].tolist() if values[at] > 0]
    for at in witnesses:
        shared = np.bincount(
            np.concatenate([np.asarray(holders[piece]) for piece in pieces[at]]), minlength=len(prompts)
        )
        likeness = shared / (sizes + sizes[at] - shared)
        likeness[at] = 0.0
        found = np.maximum(found, values[at] * likeness)
    return found


def _runs(prompt: str, n: int) -> frozenset[tuple[str, ...]]:
    words = prompt.split()
    return frozenset(tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1)))
