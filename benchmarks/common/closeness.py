"""How close a model comes to a specialist: the KL along answers that the specialist wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skillweave.base import Answer, Base, Prompt
from skillweave.files.lock import claim
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.forward import answer_logits, passes
from skillweave.skillzip.refine.loss import answer_kl
from skillweave.skillzip.refine.teacher import TeacherRow, teacher_rows

TOP_K = 256
"""Tokens of the specialist's distributions that are compared one by one; all others count as one."""


def said(
    opener: Callable[[], Base], examples: Sequence[tuple[Prompt, Answer]], config: RefineConfig, place: Path
) -> list[TeacherRow]:
    """Return what the specialist answers to the prompts, and its probabilities; they are made once in ``place``."""
    with claim(place, waiting="another process lets the specialist answer; waiting for it"):
        place.mkdir(parents=True, exist_ok=True)
        return teacher_rows(opener, examples, config, place)


def said_to(opener: Callable[[], Base], prompts: Sequence[Prompt], tokens: int, place: Path) -> list[TeacherRow]:
    """Return the same for prompts to be measured on, with answers of at most ``tokens`` tokens."""
    config = RefineConfig(top_k=TOP_K, max_new_tokens=tokens, prompts=max(2, len(prompts)))
    return said(opener, [(prompt, "") for prompt in prompts], config, place)


@torch.no_grad()
def kl_of_rows(model: Any, rows: Sequence[TeacherRow], around: Callable[[], AbstractContextManager[Any]]) -> np.ndarray:
    """Return KL(specialist || the model inside ``around()``) of each row in nats a token, float64 (rows,)."""
    found = np.zeros(len(rows))
    with around():
        for batch in passes(model, [len(row.ids) for row in rows]):
            logits = answer_logits(model, [(rows[at].ids, rows[at].prompt) for at in batch])
            parts = logits.split([rows[at].tokens for at in batch])
            for at, part in zip(batch, parts, strict=True):
                top, logs, rest = (kept.to(part.device) for kept in (rows[at].top, rows[at].logs, rows[at].rest))
                found[at] = float(answer_kl(part, top, logs, rest).mean())
    return found
