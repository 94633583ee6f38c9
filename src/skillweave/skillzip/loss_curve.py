"""Measure what the packs of a delta lose at some sizes: the KL from the specialist, along its own answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from skillweave.artefact import write_json
from skillweave.base import Answer, Base, Prompt
from skillweave.delta import Delta
from skillweave.errors import TooSmall, UserError
from skillweave.files.read import read_json
from skillweave.pack import Skillpack
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.decompositions import DecompositionStore
from skillweave.skillzip.draft import limit_for
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.run import specialist_opener
from skillweave.skillzip.refine.student import Student
from skillweave.skillzip.refine.teacher import TeacherRow, teacher_rows
from skillweave.skillzip.refine.train import divergence
from skillweave.skillzip.share import Curve
from skillweave.skillzip.zip import zip_once

_LONGEST_ANSWER = 64
"""Tokens of an answer along which the loss is measured."""


@torch.no_grad()
def loss_curve(
    delta: Delta,
    base: Base,
    calibration: Sequence[tuple[Prompt, Answer]] | None,
    config: ZipConfig,
    prompts: Sequence[Prompt],
    budgets: Collection[int],
    folder: Path,
    *,
    name: str,
    method: str = "unknown",
    data: dict[str, Any] | None = None,
    scores: dict[str, Any] | None = None,
) -> Curve:
    """Return what the packs of ``delta`` lose, in nats a token, at each of ``budgets`` and at the least bytes.

    * The loss is KL(specialist || base with the pack) on the answers that the specialist writes to ``prompts``, without
      sampling. The packs are those of ``config`` with the budget in place of its own limit, and without its refinement.
    * The first point of the curve is the smallest budget at which there is a pack. A budget below it has no point. If a
      pack needs less than its budget, its point is at what it needs.
    * ``name`` and the arguments after it are on the card of the pack, and count in its bytes.
    * ``folder`` keeps decompositions, answers and measurements: a call with the same arguments resumes.

    Raises :class:`UserError` as :func:`skillweave.skillzip.zip_delta` does, and if a loss is not a finite number.
    """
    store = DecompositionStore(folder / "decompositions")
    teacher = RefineConfig(max_new_tokens=_LONGEST_ANSWER)
    rows = teacher_rows(specialist_opener(base, delta, folder), [(prompt, "") for prompt in prompts], teacher, folder)

    def point(budget: int) -> tuple[int, float]:
        """The bytes that the pack of a budget needs, and its loss; raises :class:`TooSmall`."""
        file = folder / f"loss-{budget}.json"
        if not file.exists():
            settings = config.model_copy(update={"ratio": None, "budget": budget})
            pack = zip_once(
                delta, base, calibration, settings, store, name=name, method=method, data=data, scores=scores
            )
            write_json(file, [limit_for(pack.nbytes), _loss(base, pack, rows)])
        needed, loss = read_json(file)
        return min(needed, budget), loss

    points: dict[int, float] = {}
    least = 1
    # The largest pack comes first: it has the most ranks, and the others find their decompositions in the store. No
    # pack takes one byte, so the last refusal says how many are needed.
    for budget in (*sorted(budgets, reverse=True), 1):
        try:
            needed, loss = point(budget)
        except TooSmall as error:
            least = error.least
            break
        points[needed] = loss
    # The least budget counts as it is, even if its pack needs less: with less, the zip may refuse.
    points = {needed: loss for needed, loss in points.items() if needed > least} | {least: point(least)[1]}
    return Curve(tuple(sorted(points.items())))


def _loss(base: Base, pack: Skillpack, rows: Sequence[TeacherRow]) -> float:
    student = Student(base.model, pack)
    with student.running(student.float_factors()):
        loss = divergence(student, rows).kl
    if not math.isfinite(loss):
        raise UserError(
            f"the KL from the pack '{pack.card.name}' of {pack.nbytes} bytes to its specialist is {loss}, so nothing "
            "says how many bytes it needs: the training diverged, or dtype is too narrow (set dtype: float32)"
        )
    return loss
