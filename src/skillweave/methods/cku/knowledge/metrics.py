"""How much is still known: pure functions of what a model makes of known answers.

``top`` (B, T) bool: the answer's token is the model's first choice after all tokens before it (teacher forcing).
``mask`` (B, T) bool: true on the answer's tokens; what stands elsewhere counts nowhere. A row without tokens is an
error, not a 0: nothing to forget must not pass for something forgotten [ours].

The two gaps and R, Q compare one figure of knowledge, the higher the more is known (extraction strength, say, or
accuracy), before and after somebody tries to bring it back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

Values = Tensor | Sequence[float]
"""(N,) numbers."""


def extraction_strength(top: Tensor, mask: Tensor) -> Tensor:
    """1 - k/|y|, k the shortest prefix of the answer after which the model says the rest: (B,) float32 in [0, 1].

    1: the prompt alone brings all of it back by greedy decoding, 0: not even the last token comes. Teacher forcing
    tells it without decoding: as long as every token is the first choice the two see the same text. After
    OpenUnlearning (arXiv 2506.12618), which has it from Carlini and others (2021) [relative]; its code ends at 1/|y|
    where the last token fails too, which is 0 here.
    """
    tokens = _tokens(top, mask)
    missed = mask & ~_choices(top)
    missed_from_here_on = missed.flip(1).cumsum(dim=1).flip(1)
    return (mask & (missed_from_here_on == 0)).sum(dim=1) / tokens


def exact_memorisation(top: Tensor, mask: Tensor) -> Tensor:
    """The share of the answer's tokens that are the model's first choice: (B,) float32 in [0, 1].

    After OpenUnlearning (arXiv 2506.12618), which has it from Tirumala and others (2022) [relative].
    """
    tokens = _tokens(top, mask)
    return (mask & _choices(top)).sum(dim=1) / tokens


def min_k(log_probs: Tensor, mask: Tensor, share: float = 0.2) -> Tensor:
    """Mean log-probability of the ``share`` least likely tokens of each row: (B,), nats, the dtype of ``log_probs``.

    Min-K% Prob (arXiv 2310.16789) [relative]: text seen in training has few tokens that surprise. The higher, the
    likelier a member; :func:`membership_auc` makes a figure of it. Of n tokens floor(share * n) count, at least one.
    """
    tokens = _tokens(log_probs, mask)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    # The hair is for products such as 0.29 * 100, which floats put a hair below 29.
    counts = (tokens.double() * share + 1e-9).floor().clamp(min=1)
    ascending = torch.where(mask, log_probs, math.inf).sort(dim=1).values
    lowest = torch.arange(mask.shape[1], device=mask.device) < counts[:, None]
    mean = torch.where(lowest, ascending, 0).sum(dim=1) / counts.to(log_probs.dtype)
    # Sorting puts a NaN last, where none would see it.
    return torch.where((mask & log_probs.isnan()).any(dim=1), math.nan, mean)


def truth_ratio(right: Tensor, wrong: Tensor, mask: Tensor | None = None) -> Tensor:
    """How likely wrong answers are beside the right one, TOFU's truth ratio (arXiv 2401.06121): (N,) float64::

        mean over wrong answers a of P(a|q)^(1/|a|)  /  P(right|q)^(1/|right|)

    ``right`` (N,) and ``wrong`` (N, K): mean log-probability of a token (nats) of the right answer, paraphrased so
    that its very words do not count, and of K wrong ones of the same form. ``mask`` (N, K) bool: false where a
    question has fewer wrong ones. Towards 0: known; 1: right and wrong are alike. [relative]: TOFU's own code and
    OpenUnlearning's mean the logarithms instead (a geometric mean), and TOFU's turns the ratio upside down. float64,
    for the ratio of a ruined model leaves float32.
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
    """P-value of the two-sample Kolmogorov-Smirnov test, TOFU's forget quality (arXiv 2401.06121) [relative].

    ``truth_ratios`` of the model that forgot, ``reference`` those of one that never saw the data, on the same
    questions. Near 1: the test cannot tell them apart. Two-sided and exact for up to 10 000 values, as scipy has it.
    The ranks alone count, so ratios upside down give the same. The power grows with the number of questions: values
    compare for equal numbers only.
    """
    from scipy.stats import ks_2samp  # half a second to import

    ours, theirs = _numbers(truth_ratios, "truth_ratios"), _numbers(reference, "reference")
    return float(ks_2samp(ours, theirs).pvalue)


def membership_auc(members: Values, strangers: Values) -> float:
    """The chance that a member scores above a stranger, a tie counting half: the area under the ROC curve, in [0, 1].

    ``members``: scores of what the model was trained on (or was made to forget), ``strangers``: of like data it never
    saw; the higher a score, the likelier a member (:func:`min_k`, a mean log-probability). 0.5: an attacker guesses.
    Far below 0.5 is no better: what was unlearnt stands out by being too unlikely.
    """
    from scipy.stats import rankdata

    inside, outside = _numbers(members, "members"), _numbers(strangers, "strangers")
    ranks = rankdata([*inside, *outside])[: len(inside)]
    wins = float(ranks.sum()) - len(inside) * (len(inside) + 1) / 2
    return wins / (len(inside) * len(outside))


def relearning_gap(before: float, unlearned: float, relearned: float) -> float | None:
    """The share of what was lost that a little fine-tuning brings back: (relearned - unlearned)/(before - unlearned).

    A figure of the model before, after unlearning, and after that fine-tuning; as arXiv 2410.08827 reports it
    [relative]. 0: nothing came back, 1: all of it, above 1: more than there was, below 0: still more was lost. None
    where nothing was lost, so that nothing can come back. With little lost it is mostly noise.
    """
    return _came_back(before, unlearned, relearned)


def rounding_gap(before: float, unlearned: float, rounded: float) -> float | None:
    """The share of what was lost that rounding the weights brings back, as :func:`relearning_gap` has it [ours]."""
    return _came_back(before, unlearned, rounded)


def relearning_robustness(*, retain_gain: float, unlearned_gain: float) -> float:
    """R = min(retain_gain / unlearned_gain, 1) (OpenUnlearning, arXiv 2506.12618) [relative]: in [0, 1].

    The gains of the figure under the same fine-tuning, of a model that never saw the data and of the one that forgot.
    1: it relearns no faster than if it had never known. [ours]: 1 also where it does not relearn at all, 0 where the
    retain model loses while it gains. The source rates metrics so, we rate models.
    """
    return 1.0 if unlearned_gain <= 0 else _between_0_and_1(retain_gain / unlearned_gain)


def rounding_robustness(before: float, after: float) -> float:
    """Q = min(before / after, 1) (OpenUnlearning, arXiv 2506.12618) [relative]: in [0, 1].

    The figure of the model that forgot, ``before`` and ``after`` its weights are rounded, neither below 0. 1: rounding
    brings nothing back; also where nothing is known after it [ours]. Harsh where ``before`` is next to 0.
    """
    if before < 0 or after < 0:
        raise ValueError(f"what is known before and after rounding must be at least 0, not {before}, {after}")
    return 1.0 if after == 0 else _between_0_and_1(before / after)


def robustness(relearning: float, rounding: float) -> float:
    """The harmonic mean of R and Q (OpenUnlearning, arXiv 2506.12618) [relative]: in [0, 1], 0 where either is."""
    return statistics.harmonic_mean([relearning, rounding])


def _came_back(before: float, unlearned: float, after: float) -> float | None:
    lost = before - unlearned
    return None if lost <= 0 else (after - unlearned) / lost


def _between_0_and_1(value: float) -> float:
    # In this order of arguments a NaN stays one.
    return max(min(value, 1.0), 0.0)


def _choices(top: Tensor) -> Tensor:
    if top.dtype != torch.bool:
        raise ValueError(f"top must be bool, not {top.dtype}")
    return top


def _tokens(values: Tensor, mask: Tensor) -> Tensor:
    """How many tokens each row has: (B,) int64, none of them 0."""
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
    found = [float(value) for value in values]
    if not found:
        raise ValueError(f"{name} is empty: at least one value is needed")
    if any(map(math.isnan, found)):
        raise ValueError(f"{name} holds {sum(map(math.isnan, found))} NaN of {len(found)}: the model gave no number")
    return found
