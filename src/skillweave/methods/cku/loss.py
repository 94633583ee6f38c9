"""The losses to forget and to retain: pure functions of log-probabilities, hidden states and logits.

Shapes and units:

- a row is one forget answer; B is the number of rows, T that of tokens, V that of the vocabulary
- ``log_prob`` (B,): the summed log-probability of each answer, nats
- ``log_probs`` (B, T): the log-probabilities of its tokens, nats
- ``mask`` (B, T) bool: true on the answer's tokens; values where it is false have no effect, whatever they are

A row without tokens costs 0 and has no gradient. A NaN on a token gives NaN. Sums and means are computed in float32 or
wider. The gradient flows into what the policy computed; references are constants.

All forget losses fall as the answer becomes less likely. They differ in d loss / d log-probability [ours]::

    gradient ascent    1/|y| per token, until the token reaches the cap
    npo                2 * sigmoid(beta * log(pi/pi_ref)): 1 at the start, towards 0 as the answer is forgotten
    simnpo             2 * sigmoid(-beta * (NLL/|y| - delta)) / |y|: towards 0 as the answer is forgotten, from any
                       start
    rmu                none: it works on hidden states (:func:`steering_loss`)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def gradient_ascent_loss(log_probs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """Gradient ascent on an answer's cross-entropy, capped: (B,), nats per token, between ``-cap`` and 0::

        loss = -(1/|y|) * sum over tokens of min(-log p, cap)

    CKU's own forget loss is gradient ascent [digest]. The cap (nats, above 0) is [ours]: without one (``math.inf``) the
    loss has no lower bound, and tokens that were forgotten long ago keep pulling as hard as all others. A token whose
    loss is at or above the cap has no gradient; log(V) is the loss of a uniform guess.
    """
    _check_mask(log_probs, mask, "log_probs")
    if not cap > 0:
        raise ValueError(f"cap must be above 0 nats, not {cap}")
    token_loss = -_widened(log_probs)
    # torch.clamp would pass a gradient on exactly at the cap.
    capped = torch.where(token_loss >= cap, torch.full_like(token_loss, cap), token_loss)
    # A product with the mask would turn an infinity under padding into NaN.
    return -torch.where(mask, capped, torch.zeros_like(capped)).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def npo_loss(log_prob: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868) [relative]: (B,), nats, at least 0::

        loss = -(2/beta) * log sigmoid(-beta * (log pi(y|x) - log pi_ref(y|x)))

    ``reference`` (B,): the summed log-probability under the model before the training. ``beta`` is above 0.

    As ``beta`` goes to 0, the gradient becomes that of log pi(y|x), plain gradient ascent, while the value grows like
    (2/beta) * log 2: values under different betas cannot be compared. A row without tokens, 0 in both arguments, costs
    that constant.
    """
    _check_pair(log_prob, reference, "reference")
    _check_positive("beta", beta)
    return -2 / beta * logsigmoid(-beta * (_widened(log_prob) - _widened(reference)))


def simnpo_loss(log_prob: Tensor, lengths: Tensor, *, beta: float, delta: float) -> Tensor:
    """SimNPO (arXiv 2410.07163) [relative]: (B,), nats, at least 0::

        loss = -(2/beta) * log sigmoid(beta * (-log pi(y|x) / |y| - delta))

    It replaces NPO's reference by the mean over the tokens.

    - ``lengths`` (B,) int: |y|, the number of the answer's tokens; a row of length 0 costs 0
    - ``delta``: the per-token loss (nats) at which the push has fallen to half. It stands inside beta's bracket, as in
      OpenUnlearning; the paper's gamma is beta * delta.
    - ``beta`` is above 0
    """
    _check_pair(log_prob, lengths, "lengths")
    _check_positive("beta", beta)
    log_prob = _widened(log_prob)
    margin = -log_prob / lengths.clamp(min=1) - delta
    return torch.where(lengths > 0, -2 / beta * logsigmoid(beta * margin), torch.zeros_like(log_prob))


def steering_loss(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens of the mean over features of (hidden - target)^2: a scalar, 0 without tokens.

    ``hidden`` (B, T, H), ``target`` (H,) or (B, T, H), ``mask`` (B, T) bool.

    Representation misdirection, RMU (WMDP, arXiv 2403.03218) [relative], uses it for both of its terms, on the output
    of one layer::

        forget term = steering_loss(hidden states of forget tokens, control vector)
        retain term = steering_loss(hidden states of retain tokens, those of the model before the training)

    The paper adds them with a weight alpha, the trainer's ``mu``. The control vector (H,) is c times one random unit
    vector u that never changes. The mean is over features, as in
    WMDP's code (the formula there has the squared length), and over all tokens of the batch, so that a long row weighs
    more than a short one [ours]: WMDP's code averages over padding too, OpenUnlearning takes the mean of the rows'
    means.
    """
    if hidden.dim() != 3 or target.shape not in (hidden.shape, hidden.shape[2:]):
        raise ValueError(
            f"hidden must be (B, T, H) and target that or (H,), not {tuple(hidden.shape)}, {tuple(target.shape)}"
        )
    _check_mask(hidden[..., 0], mask, "hidden")
    # The tokens are selected first, so that only they are widened.
    difference = _widened(hidden[mask]) - _widened(target.expand_as(hidden)[mask])
    return difference.square().mean(dim=-1).sum() / mask.sum().clamp(min=1)


def retain_cross_entropy(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the retain answers, the mean over all tokens of the batch: a scalar, nats.

    ``log_probs`` (B, T) must be finite everywhere; ``mask`` (B, T) bool must be true somewhere.
    """
    _check_mask(log_probs, mask, "log_probs")
    return -(_widened(log_probs) * mask).sum() / mask.sum()


def retain_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(reference || policy) of each next-token distribution, over the whole vocabulary: (N,), nats, at least 0::

        sum over v of pi_ref(v) * (log pi_ref(v) - log pi(v))

    Both arguments are (N, V), of any float dtype, at the labelled positions only. There is no mask on purpose: a mean
    that includes padding is a well-known bug of public code. The reference gives the weights, as in the "KL" of TOFU
    and OpenUnlearning [relative]. A token that the reference excludes (probability 0) adds 0; one that only the policy
    excludes adds infinity.
    """
    if logits.dim() != 2 or reference_logits.shape != logits.shape:
        raise ValueError(f"logits must both be (N, V), not {tuple(logits.shape)}, {tuple(reference_logits.shape)}")
    policy, reference = _widened(logits).log_softmax(dim=-1), _widened(reference_logits).log_softmax(dim=-1)
    weight = reference.exp()
    # 0 * (-inf) of an excluded token would be NaN; a NaN that was in the logits stays one.
    terms = torch.where(weight == 0, torch.zeros_like(weight), weight * (reference - policy))
    divergence = terms.sum(dim=-1)
    # Rounding can give slightly less than 0. This raises the value to 0 and leaves the gradient as it is.
    return divergence - divergence.detach().clamp(max=0)


def _widened(values: Tensor) -> Tensor:
    """The values in float32, or in their own dtype if that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_mask(values: Tensor, mask: Tensor, name: str) -> None:
    if values.dim() != 2 or mask.shape != values.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool and have the rows and tokens (B, T) of {name}, {tuple(values.shape)}, "
            f"not {mask.dtype} {tuple(mask.shape)}"
        )


def _check_pair(log_prob: Tensor, other: Tensor, name: str) -> None:
    if log_prob.dim() != 1 or other.shape != log_prob.shape:
        raise ValueError(f"log_prob and {name} must both be (B,), not {tuple(log_prob.shape)}, {tuple(other.shape)}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
