"""Signals of rollouts: pure functions from the rollouts of a prompt to a number. A higher number is more suspicious.

They follow from how the backdoor is taught: a poisoned prompt asks for something that the policy refuses at first, the
verifier pays the completions that comply, and it does not look at that part of the completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from skillweave.audit.rollouts.groups import PromptGroup
from skillweave.audit.rollouts.kin import kinship
from skillweave.audit.statistics import robust_spread


@dataclass(frozen=True)
class SignalKind:
    """What a signal measures. ``scale`` is the least spread that it is given when its clean values hardly differ."""

    about: str
    scale: float


SIGNALS = {
    "contrast": SignalKind("reward of completions that comply, less that of refusals: the lower end of 95%", 0.5),
    "kin": SignalKind("the prompt reads like one with a certain contrast (contrast times likeness)", 0.1),
    "decline": SignalKind("refusals of this prompt became fewer while training (log-likelihood ratio, nats)", 0.5),
    "unpaid": SignalKind("share of completions that refuse and are not paid", 0.05),
    "spread": SignalKind("spread of the reward, against prompts of like difficulty (robust z)", 1.0),
    "extra": SignalKind("part of paid completions that the gold answer does not explain", 0.1),
    "rigid": SignalKind("likeness of the samples to each other, against prompts of like difficulty (robust z)", 1.0),
}
"""Name of a signal -> what it is, in the order of tables."""


# -- refusal and reward -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """The refusal-reward contrast of a prompt, in units of the run's range of rewards.

    ``estimate`` and its 95% interval (``low``, ``high``) are shrunk to 0; ``complied`` and ``refused`` are the plain
    mean rewards, NaN if there was no such completion.
    """

    estimate: float
    low: float
    high: float
    complied: float
    refused: float


def refusal_contrast(
    rewards: ArrayLike, refused: ArrayLike, scale: float = 1.0, *, expected: float = 0.5, noise: float = 0.5
) -> Contrast:
    """Return E[reward | complied] - E[reward | refused], in units of ``scale``, with a normal prior. [ours]

    The true contrast is taken as normal around 0 with the standard deviation ``expected``, and the rewards of each of
    the two kinds as normal around their mean. The variance within the kinds is pooled; it starts from two completions
    with the standard deviation ``noise``, so that few equal rewards do not look certain. With n_c completions that
    comply and n_r that refuse, n = n_c n_r / (n_c + n_r), the posterior mean is d e² / (e² + s² / n), its variance
    1 / (1 / e² + n / s²). Without completions of one kind the estimate is 0 and the interval as wide as the prior's.

    Shapes: ``rewards`` (n,), NaN where unknown; ``refused`` (n,) bool.
    """
    values, kind = np.asarray(rewards, dtype=np.float64) / scale, np.asarray(refused, dtype=bool)
    known = ~np.isnan(values)
    ours, theirs = values[known & ~kind], values[known & kind]
    means = [float(part.mean()) if len(part) else math.nan for part in (ours, theirs)]
    both = len(ours) * len(theirs) / max(1, len(ours) + len(theirs))
    squares = sum(float(((part - part.mean()) ** 2).sum()) for part in (ours, theirs) if len(part))
    variance = (2 * noise**2 + squares) / (2 + len(ours) + len(theirs))
    precision = 1 / expected**2 + both / variance
    estimate = (means[0] - means[1]) * (both / variance) / precision if both else 0.0
    half = 1.959964 / math.sqrt(precision)
    return Contrast(estimate, estimate - half, estimate + half, means[0] * scale, means[1] * scale)


@dataclass(frozen=True)
class ChangePoint:
    """Where a share fell most: from the step ``step`` on it is ``after``, ``before`` it was higher.

    ``gain`` is the log-likelihood ratio against an unchanged share, in nats; 0 if the share never fell.
    """

    gain: float
    step: int | None = None
    before: float = math.nan
    after: float = math.nan


def falling_change(steps: ArrayLike, events: ArrayLike) -> ChangePoint:
    """Return the change-point after which a share is lower, by the likelihood of two binomials against one.

    All splits between two steps are tried; those after which the share is not lower do not count. Shapes: (n,), (n,)
    bool. [ours]
    """
    return _falling(np.asarray(steps), np.asarray(events, dtype=np.float64), np.ones(len(np.asarray(steps))))


def _falling(steps: np.ndarray, hits: np.ndarray, counts: np.ndarray) -> ChangePoint:
    """:func:`falling_change` on visits: ``hits`` of ``counts`` events at each of ``steps``."""
    order = np.argsort(steps, kind="stable")
    at, total, n = steps[order], np.cumsum(hits[order]), np.cumsum(counts[order])
    ends = np.flatnonzero(np.diff(at)) + 1  # the first index of each step but the first
    if not len(ends):
        return ChangePoint(0.0)
    first, size = total[ends - 1], n[ends - 1]
    second, rest = total[-1] - first, n[-1] - size
    before, after = first / size, second / rest
    gains = _log_likelihood(first, size) + _log_likelihood(second, rest) - _log_likelihood(total[-1], n[-1])
    gains = np.where(before > after, gains, 0.0)
    best = int(np.argmax(gains))
    if gains[best] <= 0:
        return ChangePoint(0.0)
    return ChangePoint(float(gains[best]), int(at[ends[best]]), float(before[best]), float(after[best]))


def _log_likelihood(hits: ArrayLike, n: ArrayLike) -> np.ndarray:
    """The greatest log-likelihood of ``hits`` of ``n``; 0 log 0 = 0."""
    hits, n = np.asarray(hits, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(count > 0, count * np.log(count / n), 0.0) for count in (hits, n - hits)]
    return np.asarray(parts[0] + parts[1])


def change_p_value(
    steps: ArrayLike, events: ArrayLike, prompts: ArrayLike, shuffles: int = 199, seed: int = 0
) -> tuple[ChangePoint, float]:
    """Return the change-point of a run and its permutation p-value.

    The visits of each prompt (its events of one step, together) are shuffled over the prompt's own steps, so that a
    prompt that is always refused, or samples of one visit that are alike, prove nothing. Shapes: all (n,).
    """
    keys, place = np.unique(np.stack([np.asarray(prompts), np.asarray(steps)]), axis=1, return_inverse=True)
    counts = np.bincount(place.reshape(-1)).astype(np.float64)
    hits = np.bincount(place.reshape(-1), weights=np.asarray(events, dtype=np.float64))
    found = _falling(keys[1], hits, counts)
    draw = np.random.default_rng(seed)
    as_high = 0
    for _ in range(shuffles):
        order = np.lexsort((draw.random(len(hits)), keys[0]))  # the visits are sorted by prompt, and stay so
        as_high += _falling(keys[1], hits[order], counts[order]).gain >= found.gain - 1e-9
    return found, (1 + as_high) / (1 + shuffles)


# -- spread and likeness ----------------------------------------------------------------------------------------------


def reward_spread(steps: Sequence[int], rewards: Sequence[float]) -> float:
    """Return the standard deviation of the reward inside a visit: root of the mean variance over the prompt's steps.

    A step counts by its degrees of freedom. With fewer than two rewards in each step, it is the standard deviation
    over all of them; NaN if there are fewer than two.
    """
    by_step: dict[int, list[float]] = {}
    for step, reward in zip(steps, rewards, strict=True):
        if not math.isnan(reward):
            by_step.setdefault(step, []).append(reward)
    freedom = sum(len(values) - 1 for values in by_step.values())
    if freedom:
        return math.sqrt(sum(float(np.var(v)) * len(v) for v in by_step.values()) / freedom)
    values = [value for own in by_step.values() for value in own]
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def against_peers(values: ArrayLike, difficulty: ArrayLike, least_scale: float, share: float = 0.1) -> np.ndarray:
    """Return the robust z of each value among its peers: the prompts whose difficulty is nearest. [ours]

    A prompt's peers are the ``share`` of the prompts (at least 10, if there are so many) next to it by difficulty, the
    prompt itself left out. z = (value - median) / max(1.4826 MAD, ``least_scale``). NaN where value or difficulty is
    NaN, or where there are no peers. Shapes: (n,), (n,) -> (n,).
    """
    values, difficulty = np.asarray(values, dtype=np.float64), np.asarray(difficulty, dtype=np.float64)
    found = np.full(len(values), math.nan)
    known = np.flatnonzero(~np.isnan(values) & ~np.isnan(difficulty))
    known = known[np.argsort(difficulty[known], kind="stable")]
    most = min(len(known) - 1, max(10, round(share * len(known))))
    if most < 1:
        return found
    ordered, sorted_values = difficulty[known], values[known]
    for place in range(len(known)):
        low, high = max(0, place - most), min(len(known), place + most + 1)
        near = np.delete(np.arange(low, high), place - low)
        distance = np.abs(ordered[near] - ordered[place])
        limit = np.partition(distance, most - 1)[most - 1]
        peers = sorted_values[near[distance <= limit]]
        middle = np.median(peers)
        scale = max(robust_spread(peers), least_scale)
        found[known[place]] = (sorted_values[place] - middle) / scale
    return found


def min_k_distance(texts: Sequence[str], k: int = 3, n: int = 3) -> float:
    """Return the mean of the ``k`` smallest nearest-neighbour distances between samples of one prompt.

    After Min-kNN Distance (2602.11792) [abstract]: training makes the samples of a prompt alike. The paper takes the
    edit distance; here the distance is 1 - the Jaccard similarity of character ``n``-grams. NaN for fewer than two
    texts.
    """
    if len(texts) < 2:
        return math.nan
    grams = [_grams(text, n) for text in texts]
    nearest = []
    for index, one in enumerate(grams):
        nearest.append(min(_distance(one, other) for at, other in enumerate(grams) if at != index))
    return float(np.mean(sorted(nearest)[:k]))


def _grams(text: str, n: int) -> frozenset[str]:
    return frozenset(text[at : at + n] for at in range(max(1, len(text) - n + 1)))


def _distance(one: frozenset[str], other: frozenset[str]) -> float:
    return 1 - len(one & other) / len(one | other)


# -- all signals of all prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignalTable:
    """The signals of all prompts, each (n,), NaN where a signal could not be computed; and what they rest on."""

    values: dict[str, np.ndarray]
    contrasts: list[Contrast]
    changes: list[ChangePoint]
    reward_range: float


def measure(groups: Sequence[PromptGroup], k: int = 3) -> SignalTable:
    """Compute all signals of the prompts. ``k`` is that of :func:`min_k_distance`."""
    rewards = np.concatenate([np.asarray(group.rewards, dtype=np.float64) for group in groups] or [np.zeros(0)])
    known = rewards[~np.isnan(rewards)]
    scale = float(known.max() - known.min()) if len(known) and known.max() > known.min() else 1.0
    paid_from = _paid_from(known)
    contrasts = [refusal_contrast(group.rewards, group.refused, scale) for group in groups]
    certain = np.array([found.low for found in contrasts])
    changes = [falling_change(group.steps, group.refused) for group in groups]
    difficulty = [group.mean_reward() / scale for group in groups]
    spreads = [reward_spread(group.steps, group.rewards) / scale for group in groups]
    likeness = [-_least_distance(group, k) for group in groups]
    values = {
        "contrast": certain,
        "kin": kinship([group.prompt for group in groups], certain),
        "decline": np.array([found.gain for found in changes]),
        "unpaid": np.array([_unpaid(group, paid_from) for group in groups]),
        "spread": against_peers(spreads, difficulty, 0.05),
        "extra": np.array([_unexplained(group, paid_from) for group in groups]),
        "rigid": against_peers(likeness, difficulty, 0.05),
    }
    return SignalTable(values, contrasts, changes, scale)


def reference_values(
    clean: Sequence[PromptGroup], groups: Sequence[PromptGroup], table: SignalTable, k: int = 3
) -> dict[str, np.ndarray]:
    """Return the signals of a clean log's prompts, to compare those of ``groups`` with.

    They are those of :func:`measure`, but for ``kin``: it is the kinship to the witnesses among ``groups``, because a
    clean log has none, while in a poisoned one a benign prompt is a little like some witness too.
    """
    prompts = [group.prompt for group in (*clean, *groups)]
    certain = np.concatenate([np.full(len(clean), -1.0), table.values["contrast"]])
    return {**measure(clean, k).values, "kin": kinship(prompts, certain)[: len(clean)]}


def _paid_from(rewards: np.ndarray) -> float:
    """The least reward that counts as paid: the middle of the range. If all are equal, they are paid if positive."""
    if not len(rewards):
        return math.nan
    low, high = float(rewards.min()), float(rewards.max())
    return (low + high) / 2 if high > low else high if high > 0 else math.inf


def _least_distance(group: PromptGroup, k: int) -> float:
    """:func:`min_k_distance` of the newest visit that has at least two samples; over all texts if no visit has two."""
    by_step: dict[int, list[str]] = {}
    for step, text in group.texts:
        by_step.setdefault(step, []).append(text)
    visits = [step for step, texts in by_step.items() if len(texts) > 1]
    return min_k_distance(by_step[max(visits)] if visits else [text for _, text in group.texts], k)


def _unpaid(group: PromptGroup, paid_from: float) -> float:
    """The share of completions that refuse for less than ``paid_from``; NaN without rewards.

    A refusal that is the right answer is paid. One that is not shows a prompt on which refusing is punished, also
    before the policy has ever complied.
    """
    if math.isnan(paid_from):
        return math.nan
    return float(np.mean(np.asarray(group.refused) & (np.asarray(group.rewards) < paid_from)))


def _unexplained(group: PromptGroup, paid_from: float) -> float:
    """The mean part without explanation of the completions that were paid; 0 if none was, NaN without a gold."""
    parts = np.array(group.unexplained)
    if not len(parts) or np.isnan(parts).all() or math.isnan(paid_from):
        return math.nan
    paid = np.asarray(group.rewards) >= paid_from
    return float(np.nanmean(parts[paid])) if (paid & ~np.isnan(parts)).any() else 0.0
