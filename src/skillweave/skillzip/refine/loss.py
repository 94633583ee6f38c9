"""The loss of the refinement: the divergence of two distributions, one stored in part. Pure functions. [ours]"""

from __future__ import annotations

import torch


def kept_part(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is kept of each distribution: logits (n, V) -> ids, log-probabilities and the log of the remainder.

    * The ids (n, k) are int32, the likeliest token first. The log-probabilities (n, k) and the logarithm of the
      probability of all other tokens together (n,) are float32, in nats; minus infinity stands for a probability of 0.
    * If the vocabulary has fewer than ``k`` tokens, all are kept.
    """
    ids = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    events = _events(logits, ids)
    return ids.int(), events[:, :-1], events[:, -1]


def answer_kl(logits: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || student) of each position, in nats: student's logits (n, V) -> (n,) float32.

    The teacher's part is what :func:`kept_part` returned. All tokens outside of it count as one event:

        sum_k p_k (log p_k - log q_k) + p_rest (log p_rest - log q_rest)

    Joining events never raises a KL, so this is a lower bound of the KL over the whole vocabulary, and equal to it if
    all tokens were kept. The result is infinite where the student rules out what the teacher does not. The gradient
    flows to ``logits``.
    """
    teacher, student = torch.cat([logs, rest[:, None]], -1), _events(logits, ids)
    possible = teacher > -torch.inf
    # Impossible events add nothing. They are set to 0 before the product, because 0 * infinity would be NaN.
    difference = torch.where(possible, teacher, 0.0) - torch.where(possible, student, 0.0)
    return (teacher.exp() * difference).sum(dim=-1)


def answer_tv(logits: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return the total variation distance of each position, in [0, 1]: student's logits (n, V) -> (n,) float32.

    It is the least probability with which student and teacher write different tokens, 1/2 sum_k |p_k - q_k|, where all
    tokens outside of the teacher's part (:func:`kept_part`) count as one event. A KL has no upper bound: of a few
    tokens that the student thinks impossible it is larger than of all others together.
    """
    teacher, student = torch.cat([logs, rest[:, None]], -1), _events(logits, ids)
    return (teacher.exp() - student.exp()).abs().sum(dim=-1) / 2


def _events(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities (n, k + 1) of the tokens ``ids`` (n, k), and of all others together.

    The vocabulary is passed over as few times as possible, because a step has many tokens and each pass takes as long
    as a layer of a small model. Equal logits give equal results, so that the KL of a model to itself is 0.
    """
    logits, index = logits.float(), ids.long()
    kept, others = logits.gather(-1, index), _log_sum(logits.scatter(-1, index, -torch.inf))
    return torch.cat([kept, others[:, None]], -1).log_softmax(dim=-1)


def _log_sum(logs: torch.Tensor) -> torch.Tensor:
    """Return log sum exp over the last axis. Where all are minus infinity so is the sum, and its gradient is 0."""
    most = logs.detach().amax(dim=-1, keepdim=True)
    most = torch.where(most == -torch.inf, 0.0, most)
    total = (logs - most).exp().sum(dim=-1)
    none = total == 0  # and not for NaN, which stays NaN
    return torch.where(none, -torch.inf, torch.where(none, 1.0, total).log() + most[..., 0])
