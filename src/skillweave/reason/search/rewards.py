"""MATSIR's dual reward: is the hypothesis coherent with the examples, and does it say more than its parent?

The paper's formulas are not public; these are our reconstruction [ours]. Rewards come from executed behaviour and not
from words, so a rephrased hypothesis earns nothing for being rephrased.
"""

from __future__ import annotations

from collections.abc import Sequence

from skillweave.reason.hypothesis import Evaluation
from skillweave.reason.problem import Missing
from skillweave.tasks.verifiers.code_result import same_result


def total_reward(coherent: float, enriched: float, weight: float) -> float:
    """R = w * R_coherent + (1 - w) * R_enriched, in [0, 1] for arguments in [0, 1]."""
    return weight * coherent + (1 - weight) * enriched


def enrichment(child: Evaluation, parent: Evaluation | None, siblings: Sequence[Evaluation]) -> float:
    """R_enriched, in [0, 1]: half the :func:`gain` over the parent plus half the :func:`novelty`.

    It is zero if the child behaves like its parent or a sibling on the training and probe inputs. ``parent`` is None
    below the root.
    """
    known = [*siblings] if parent is None else [parent, *siblings]
    if any(child.behaviour == other.behaviour for other in known):
        return 0.0
    return (gain(child, parent) + novelty(child, known)) / 2


def gain(child: Evaluation, parent: Evaluation | None) -> float:
    """The share of training pairs that the child solves and the parent (None: the root) does not."""
    before = [False] * len(child.solved) if parent is None else parent.solved
    return sum(now and not then for now, then in zip(child.solved, before, strict=True)) / len(child.solved)


def novelty(child: Evaluation, known: Sequence[Evaluation]) -> float:
    """The smallest share of training pairs on which the outcome differs from that of a known hypothesis; 1 without any.

    Two failures count as the same outcome.
    """
    return min((_difference(child, other) for other in known), default=1.0)


def _difference(one: Evaluation, other: Evaluation) -> float:
    pairs = list(zip(one.outcomes, other.outcomes, strict=True))
    return sum(not _alike(left, right) for left, right in pairs) / len(pairs)


def _alike(left: object, right: object) -> bool:
    if isinstance(left, Missing) or isinstance(right, Missing):
        return isinstance(left, Missing) and isinstance(right, Missing)
    return same_result(left, right)
