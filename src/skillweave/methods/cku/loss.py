"""What is minimised to forget and to retain: pure functions of log-probabilities, hidden states and logits.

A row is a forget answer: ``log_prob`` (B,) is its summed log-probability in nats, ``log_probs`` (B, T) those of its
tokens, ``mask`` (B, T) bool, true on the answer's tokens. What stands where the mask is false counts nowhere, whatever
it is. A row without tokens costs 0 and teaches nothing. A NaN on a token comes out as NaN. Sums and means are taken in
float32 at the least; the gradient flows into what the policy computed, references are constants made without one.

All forget losses fall as the answer becomes less likely. How fast tells them apart, d loss / d log-probability [ours]::

    gradient ascent    1/|y| a token, until the token is at the cap
    npo                2 * sigmoid(beta * log(pi/pi_ref)): 1 at the start, towards 0 as the answer goes
    simnpo             2 * sigmoid(-beta * (NLL/|y| - delta)) / |y|: towards 0 as the answer goes, whatever the start
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def gradient_ascent_loss(log_probs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """Gradient ascent on an answer's cross-entropy, capped: (B,), nats a token, between ``-cap`` and 0::

        loss = -(1/|y|) * sum over tokens of min(-log p, cap)

    CKU's own forget loss is gradient ascent [digest]. The cap (nats, above 0) is ours: without one (``math.inf``) the
    loss has no floor, and the least likely tokens, long forgotten, go on to pull as hard as all others. A token that is
    as unlikely as the cap, or more, has no gradient; ln(vocabulary) is where chance alone would put it.
    """
    _mask_fits(log_probs, mask, "log_probs")
    if not cap > 0:
        raise ValueError(f"cap must be above 0 nats, not {cap}")
    surprise = -_wide(log_probs)
    # Not clamp, which passes a gradient on at the cap itself.
    capped = torch.where(surprise >= cap, torch.full_like(surprise, cap), surprise)
    # Not a product with the mask, which would turn an infinity under padding into NaN.
    return -torch.where(mask, capped, torch.zeros_like(capped)).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def npo_loss(log_prob: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868) [relative]: (B,), nats, at least 0::

        loss = -(2/beta) * log sigmoid(-beta * (log pi(y|x) - log pi_ref(y|x)))

    ``reference`` (B,): the summed log-probability under the model as it was before. As ``beta`` (above 0) goes to 0 the
    gradient becomes that of log pi(y|x), plain gradient ascent, while the value grows like (2/beta) * log 2: values
    under different betas do not compare. A row without tokens, 0 in both, costs that constant.
    """
    _both_rows(log_prob, reference, "reference")
    _above_zero("beta", beta)
    return -2 / beta * logsigmoid(-beta * (_wide(log_prob) - _wide(reference)))


def simnpo_loss(log_prob: Tensor, lengths: Tensor, *, beta: float, delta: float) -> Tensor:
    """SimNPO (arXiv 2410.07163) [relative], no reference, the mean over tokens in its place: (B,), nats, at least 0::

        loss = -(2/beta) * log sigmoid(beta * (-log pi(y|x) / |y| - delta))

    ``lengths`` (B,) int: |y|, the answer's tokens. ``delta``, nats a token: how unlikely a token is to become before
    the loss slackens. It stands inside beta's bracket, as in OpenUnlearning; the paper's gamma is beta * delta.
    ``beta`` is above 0. A row of length 0 costs 0.
    """
    _both_rows(log_prob, lengths, "lengths")
    _above_zero("beta", beta)
    log_prob = _wide(log_prob)
    margin = -log_prob / lengths.clamp(min=1) - delta
    return torch.where(lengths > 0, -2 / beta * logsigmoid(beta * margin), torch.zeros_like(log_prob))


def rmu_loss(
    forget_hidden: Tensor, control: Tensor, forget_mask: Tensor, retain_hidden: Tensor, retain_reference: Tensor,
    retain_mask: Tensor, *, alpha: float,
) -> Tensor:  # fmt: skip
    """Representation misdirection, RMU (WMDP, arXiv 2403.03218) [relative]: a scalar::

        loss = steering_loss(forget_hidden, control) + alpha * steering_loss(retain_hidden, retain_reference)

    The output of one layer, (B, T, H) on forget and (C, S, H) on retain tokens, is drawn on the former to ``control``
    (H,), c times one random unit vector u that never changes, and held on the latter to ``retain_reference``
    (C, S, H), what the model gave there before.
    """
    return steering_loss(forget_hidden, control, forget_mask) + alpha * steering_loss(
        retain_hidden, retain_reference, retain_mask
    )


def steering_loss(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens of the mean over features of (hidden - target)^2: a scalar, 0 without tokens.

    ``hidden`` (B, T, H), ``target`` (H,) or (B, T, H), ``mask`` (B, T) bool. The mean is over features, as in WMDP's
    code (the formula there has the squared length), and over all tokens of the batch, so that a long row weighs more
    than a short one [ours]: WMDP's code averages padding in, OpenUnlearning takes the mean of the rows' means.
    """
    if hidden.dim() != 3 or target.shape not in (hidden.shape, hidden.shape[2:]):
        raise ValueError(
            f"hidden must be (B, T, H) and target that or (H,), not {tuple(hidden.shape)}, {tuple(target.shape)}"
        )
    _mask_fits(hidden[..., 0], mask, "hidden")
    # Picked first, so that only the tokens are widened.
    away = _wide(hidden[mask]) - _wide(target.expand_as(hidden)[mask])
    return away.square().mean(dim=-1).sum() / mask.sum().clamp(min=1)


def retain_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(reference || policy) of each next-token distribution, over the whole vocabulary: (N,), nats, at least 0::

        sum over v of pi_ref(v) * (log pi_ref(v) - log pi(v))

    Both (N, V), any float dtype, at the labelled positions alone: a mean that padding enters is a bug well known from
    public code, which is why this takes no mask. The reference gives the weights, as in TOFU's and OpenUnlearning's
    "KL" [relative]. Words that the reference excludes count 0; what the policy alone excludes costs infinity.
    """
    if logits.dim() != 2 or reference_logits.shape != logits.shape:
        raise ValueError(f"logits must both be (N, V), not {tuple(logits.shape)}, {tuple(reference_logits.shape)}")
    policy, reference = _wide(logits).log_softmax(dim=-1), _wide(reference_logits).log_softmax(dim=-1)
    weight = reference.exp()
    # 0 * (-inf) of an excluded word would be NaN; a NaN that was in the logits stays one.
    terms = torch.where(weight == 0, torch.zeros_like(weight), weight * (reference - policy))
    divergence = terms.sum(dim=-1)
    # Rounding can leave a hair less than 0. The value is mended, the gradient left whole.
    return divergence - divergence.detach().clamp(max=0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mask_fits(values: Tensor, mask: Tensor, name: str) -> None:
    if values.dim() != 2 or mask.shape != values.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool and have the rows and tokens (B, T) of {name}, {tuple(values.shape)}, "
            f"not {mask.dtype} {tuple(mask.shape)}"
        )


def _both_rows(log_prob: Tensor, other: Tensor, name: str) -> None:
    if log_prob.dim() != 1 or other.shape != log_prob.shape:
        raise ValueError(f"log_prob and {name} must both be (B,), not {tuple(log_prob.shape)}, {tuple(other.shape)}")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
