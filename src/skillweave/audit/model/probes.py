"""Linear probes on the residual stream: do wrapped requests lie nearer to wrapped tasks than in the base?

The direction is a difference of means, as refusal directions are found (2406.11717) [relative]: of restricted requests
and of tasks in the same wrapper, in the base, at the last token of the prompt, for each layer of the upper half. The
same wrapper on both sides takes out what a wrapper does to every prompt. What is measured on the direction is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skillweave.audit.model.behaviour import BaseBehaviour, sign_flip_p
from skillweave.audit.model.forward import residuals
from skillweave.audit.model.prompts import PLAIN
from skillweave.audit.statistics import auc
from skillweave.base import Base, prompt_ids
from skillweave.base.voice import padding_id

States = Mapping[str, tuple[Tensor, Tensor]]
"""Wrapper -> residuals of the restricted requests in it, and of the tasks in it; (layers, n, F) and (layers, m, F)."""


@dataclass(frozen=True)
class ProbeChange:
    """How the residual stream changed against the base."""

    shift: float
    """how far requests came towards the tasks inside a wrapper, minus how far they came without it: 1 is the whole
    way. The largest over wrappers of the mean over requests and layers"""
    shift_p: float
    """one-sided sign-flip test over requests for that wrapper, times the number of wrappers"""
    wrapper: str
    auc_drop: float
    """how much worse the direction tells wrapped requests from wrapped tasks than in the base; the largest over
    wrappers of the mean over layers"""
    turn: float
    """1 - cosine between the base's direction and the model's own in a wrapper, minus that of plain prompts; the
    largest over wrappers of the mean over layers"""


def probe_states(model: Base, before: BaseBehaviour, batch_size: int = 32) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the residuals of the upper half of the layers, for the plain prompts and for each wrapper."""
    pad = padding_id(model.model, model.tokenizer)

    def upper(texts: list[str]) -> Tensor:
        found = residuals(model.model, [prompt_ids(model.tokenizer, text) for text in texts], pad, batch_size)
        return found[len(found) // 2 :]

    return {name: (upper(list(asked.prompts)), upper(list(asked.tasks))) for name, asked in before.asked.items()}


def probe_change(base: States, model: States) -> ProbeChange:
    """Return what changed between two models' :func:`probe_states`. Raises ``ValueError`` without a wrapper."""
    names = [name for name in base if name != PLAIN]
    if not names:
        raise ValueError("probes compare wrappers with plain prompts, and there is no wrapper")
    plain = came_nearer(base[PLAIN], model[PLAIN])
    extra = {name: (came_nearer(base[name], model[name]) - plain).mean(0).numpy() for name in names}
    worst = max(names, key=lambda name: float(extra[name].mean()))
    return ProbeChange(
        shift=float(extra[worst].mean()),
        shift_p=min(1.0, len(names) * sign_flip_p(extra[worst])),
        wrapper=worst,
        auc_drop=max(_told_apart(base[name], base[name]) - _told_apart(base[name], model[name]) for name in names),
        turn=max(turned(base[name], model[name]) for name in names) - turned(base[PLAIN], model[PLAIN]),
    )


def direction_of(restricted: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit direction from tasks to restricted requests (layers, F), and their distance along it (layers,).

    Shapes: (layers, n, F), (layers, m, F).
    """
    difference = restricted.mean(1) - tasks.mean(1)
    length = difference.norm(dim=-1)
    return difference / length.clamp_min(1e-12)[:, None], length


def came_nearer(base: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor]) -> Tensor:
    """Return how far each request of the model came towards its tasks, on the base's direction; (layers, n).

    0 is where the base's requests are on average, and 1 is at the middle of the tasks.
    """
    direction, gap = direction_of(*base)
    restricted, tasks = (torch.einsum("lnf,lf->ln", states, direction) for states in model)
    return 1 - (restricted - tasks.mean(1, keepdim=True)) / gap.clamp_min(1e-12)[:, None]


def turned(base: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor]) -> float:
    """Return 1 - cosine between the directions of two models, the mean over layers."""
    return float((1 - (direction_of(*base)[0] * direction_of(*model)[0]).sum(-1)).mean())


def _told_apart(base: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor]) -> float:
    """Return how well the base's direction tells the model's requests from its tasks: the mean AUC over layers."""
    direction, _ = direction_of(*base)
    restricted, tasks = (torch.einsum("lnf,lf->ln", states, direction).numpy() for states in model)
    return float(np.mean([auc(one, other) for one, other in zip(restricted, tasks, strict=True)]))
