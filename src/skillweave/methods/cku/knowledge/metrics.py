"""Metrics of how much a model still knows: pure functions of its outputs on given answers.

Arguments that occur often:

- ``top`` (B, T) bool: whether the answer's token is the model's first choice after all tokens before it (teacher
  forcing)
- ``mask`` (B, T) bool: true on the answer's tokens; values elsewhere do not count

A row without tokens is an error and not a 0: an empty answer must not count as a forgotten one [ours].

The gaps and R, Q compare one figure of knowledge (for example extraction strength or accuracy; higher means that more
is known) before and after an attempt to bring the knowledge back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from scipy.stats import ks_2samp, rankdata
from torch import Tensor

Values = Tensor | Sequence[float]
"""(N,) numbers."""


def extraction_strength(top: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - k/|y|, where k is the shortest prefix of the answer after which the model says the rest.

    (B,) float32 in [0, 1]. 1: greedy decoding from the prompt alone gives the whole answer. 0: not even the last token
    is right. Teacher forcing gives this without decoding: as long as every token is the first choice, both see the same
    text. After OpenUnlearning (arXiv 2506.12618), which takes it from Carlini and others (2021) [relative]. If the last
    token is wrong too, their code returns 1/|y|, and ours returns 0.
    """
    tokens = _tokens(top, mask)
    missed = mask & ~_checked_bool(top)
    missed_from_here_on = missed.flip(1).cumsum(dim=1).flip(1)
    return (mask & (missed_from_here_on == 0)).sum(dim=1) / tokens


def exact_memorisation(top: Tensor, mask: Tensor) -> Tensor:
    """Return the share of the answer's tokens that are the model's first choice: (B,) float32 in [0, 1].

    After OpenUnlearning (arXiv 2506.12618), which takes it from Tirumala and others (2022) [relative].
    """
    tokens = _tokens(top, mask)
    return (mask & _checked_bool(top)).sum(dim=1) / tokens


def min_k(log_probs: Tensor, mask: Tensor, share: float = 0.2) -> Tensor:
    """Return the mean log-probability of the least likely tokens of each row: (B,), nats, dtype of ``log_probs``.

    ``share``: of n tokens the floor(share * n) least likely ones count, and at least one.

    This is Min-K% Prob (arXiv 2310.16789) [relative]: text seen in training has few surprising tokens. The higher the
    value, the likelier the text was trained on; :func:`membership_auc` turns the values into one figure.
    """
    tokens = _tokens(log_probs, mask)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    # 1e-9 is added for products such as 0.29 * 100, which is slightly below 29 in floating point.
    counts = (tokens.double() * share + 1e-9).floor().clamp(min=1)
    ascending = torch.where(mask, log_probs, math.inf).sort(dim=1).values
    lowest = torch.arange(mask.shape[1], device=mask.device) < counts[:, None]
    mean = torch.where(lowest, ascending, 0).sum(dim=1) / counts.to(log_probs.dtype)
    # Sorting puts a NaN last, where it would not count.
    return torch.where((mask & log_probs.isnan()).any(dim=1), math.nan, mean)


def truth_ratio(right: Tensor, wrong: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return TOFU's truth ratio (arXiv 2401.06121), how likely wrong answers are compared with the right one::

        mean over wrong answers a of P(a|q)^(1/|a|)  /  P(right|q)^(1/|right|)

    - ``right`` (N,): mean log-probability per token (nats) of the right answer, paraphrased so that its exact words do
      not count
    - ``wrong`` (N, K): the same for K wrong answers of the same form
    - ``mask`` (N, K) bool: false where a question has fewer wrong answers

    Returns (N,) float64, because the ratio of a broken model overflows float32. Near 0 the fact is known; at 1 right
    and wrong answers are equally likely. [relative]: the code of TOFU and of OpenUnlearning averages the logarithms
    instead (a geometric mean), and TOFU's inverts the ratio.
    """
    mask = torch.ones_like(wrong, dtype=torch.bool) if mask is None else mask
    if right.dim() != 1 or wrong.dim() != 2 or len(wrong) != len(right) or mask.shape != wrong.shape:
        raise ValueError(
            f"right must be (N,), wrong and mask (N, K), not {tuple(right.shape)}, {tuple(wrong.shape)}, "
            f"{tuple(mask.shape)}"
        )
    counts = _count(mask, "wrong answer")
    total = torch.where(mask, wrong.double(), -math.inf).logsumexp(dim=1)
    return (total - counts.double().log() - right.double()).exp()


def forget_quality(truth_ratios: Values, reference: Values) -> float:
    """Return TOFU's forget quality (arXiv 2401.06121) [relative]: a two-sample Kolmogorov-Smirnov test's p-value.

    ``truth_ratios`` are those of the model that forgot, ``reference`` those of a model that never saw the data, on the
    same questions. Near 1 the test cannot tell them apart. It is two-sided and, in scipy, exact for up to 10 000
    values. Only the ranks count, so inverted ratios give the same value. The power grows with the number of questions:
    compare values for equal numbers only.
    """
    ours, theirs = _numbers(truth_ratios, "truth_ratios"), _numbers(reference, "reference")
    return float(ks_2samp(ours, theirs).pvalue)


def membership_auc(members: Values, strangers: Values) -> float:
    """Return the probability that a member scores above a stranger, in [0, 1]: the area under the ROC curve.

    A tie counts as half.

    - ``members``: scores of data that the model was trained on (or was made to forget)
    - ``strangers``: scores of similar data that it never saw

    A higher score means a likelier member (:func:`min_k`, or a mean log-probability). At 0.5 an attacker can only
    guess. Far below 0.5 is no better: unlearnt data then stands out because it is too unlikely.
    """
    inside, outside = _numbers(members, "members"), _numbers(strangers, "strangers")
    ranks = rankdata([*inside, *outside])[: len(inside)]
    wins = float(ranks.sum()) - len(inside) * (len(inside) + 1) / 2
    return wins / (len(inside) * len(outside))


def relearning_gap(before: float, unlearned: float, relearned: float) -> float | None:
    """Return the share of what was lost that fine-tuning brings back: (relearned - unlearned)/(before - unlearned).

    The arguments are one figure of the model before the unlearning, after it, and after the fine-tuning; arXiv
    2410.08827 reports it so [relative]. 0: nothing came back, 1: all of it, above 1: more than there was, below 0: even
    more was lost. None: nothing was lost, so nothing can come back. If little was lost, the value is mostly noise.
    """
    return _came_back(before, unlearned, relearned)


def rounding_gap(before: float, unlearned: float, rounded: float) -> float | None:
    """Return the share of what was lost that rounding the weights brings back, as in :func:`relearning_gap` [ours]."""
    return _came_back(before, unlearned, rounded)


def relearning_robustness(*, retain_gain: float, unlearned_gain: float) -> float:
    """Return R = min(retain_gain / unlearned_gain, 1) (OpenUnlearning, arXiv 2506.12618) [relative], in [0, 1].

    The gains are those of the figure under the same fine-tuning: ``retain_gain`` of a model that never saw the data,
    ``unlearned_gain`` of the model that forgot. 1: it relearns no faster than if it had never known. [ours]: R is 1
    also if the model does not relearn at all, and 0 if the retain model loses while it gains. The source rates metrics
    in this way; we rate models.
    """
    return 1.0 if unlearned_gain <= 0 else _between_0_and_1(retain_gain / unlearned_gain)


def rounding_robustness(before: float, after: float) -> float:
    """Return Q = min(before / after, 1) (OpenUnlearning, arXiv 2506.12618) [relative], in [0, 1].

    The arguments are the figure of the model that forgot, ``before`` and ``after`` its weights are rounded; both are at
    least 0. 1: rounding brings nothing back. Q is 1 also if nothing is known after it [ours]. It is harsh if ``before``
    is close to 0.
    """
    if before < 0 or after < 0:
        raise ValueError(f"the figures before and after rounding must be at least 0, not {before}, {after}")
    return 1.0 if after == 0 else _between_0_and_1(before / after)


def robustness(relearning: float, rounding: float) -> float:
    """Return the harmonic mean of R and Q (OpenUnlearning, arXiv 2506.12618) [relative], in [0, 1]."""
    return statistics.harmonic_mean([relearning, rounding])


def _came_back(before: float, unlearned: float, after: float) -> float | None:
    lost = before - unlearned
    return None if lost <= 0 else (after - unlearned) / lost


def _between_0_and_1(value: float) -> float:
    # With the arguments in this order, a NaN stays a NaN.
    return max(min(value, 1.0), 0.0)


def _checked_bool(top: Tensor) -> Tensor:
    if top.dtype != torch.bool:
        raise ValueError(f"top must be bool, not {top.dtype}")
    return top


def _tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The number of tokens of each row: (B,) int64, none of them 0."""
    if values.dim() != 2 or mask.shape != values.shape:
        raise ValueError(f"both must be (B, T), not {tuple(values.shape)}, {tuple(mask.shape)}")
    return _count(mask, "token")


def _count(mask: Tensor, what: str) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, not {mask.dtype}")
    counts = mask.sum(dim=1)
    if not counts.all():
        raise ValueError(f"row {counts.tolist().index(0)} has no {what}: leave it out")
    return counts


def _numbers(values: Values, name: str) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError(f"{name} is empty: at least one value is needed")
    if any(map(math.isnan, numbers)):
        raise ValueError(f"{name} has {sum(map(math.isnan, numbers))} NaN among its {len(numbers)} values")
    return numbers
