"""One budget for all packs of a weave: measure what each skill loses at some sizes, and split the bytes.

The record of the step, :class:`Shares`, says what each skill got and why.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from skillweave.artefact import write_json
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_model
from skillweave.files.recover import drop
from skillweave.pipeline.inputs import BuildInputs, BuildModels
from skillweave.pipeline.step import BACKBONE, BuildStep, again
from skillweave.progress import console
from skillweave.report.table import Table
from skillweave.skillzip.loss_curve import loss_curve
from skillweave.skillzip.share import Curve, split
from skillweave.units import human_bytes

_STEP = "weave/shares"
_FILE = "shares.json"
_PROMPTS = 16
"""The loss of a pack is measured on the answers to at most so many prompts."""
_AUDIT_BYTES = 512
"""More than the record of an audit takes on a pack's card."""
_SIZES = (0.25, 1.0, 4.0)
"""The sizes at which a pack is measured, as multiples of an equal share; none is more than all bytes."""


class SkillShare(BaseModel):
    """What one skill got, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    """the most bytes of its pack"""
    points: list[tuple[int, float]]
    """(bytes, measured KL from the specialist in nats a token), the least pack first; none if nothing was measured"""
    loss: float | None
    """the KL that its curve predicts at ``bytes``, before a refinement; None if nothing was measured"""
    loss_of_equal: float | None
    """the same for an equal share, if the pack can be so small"""
    next_percent: float | None
    """how much of ``loss`` one percent more bytes would take away"""


class Shares(BaseModel):
    """How the bytes of ``pack_budget`` are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: int
    ready: dict[str, int]
    """the bytes of each ready pack, which is taken as it is"""
    reserved: int
    """bytes that stay free for what audits write on the cards"""
    skills: dict[str, SkillShare]

    def table(self) -> Table:
        """Return the table of what each skill got and why, for a person."""
        rows = []
        for name, share in self.skills.items():
            losses = [share.loss_of_equal, share.loss]
            shown = ["-" if loss is None else f"{1000 * loss:.3g}" for loss in losses]
            more = "-" if share.next_percent is None else f"{1000 * share.next_percent:.2g}"
            rows.append([name, human_bytes(share.bytes), f"{share.bytes / self.budget:.1%}", *shown, more])
        rows += [
            [f"{name} (ready)", human_bytes(nbytes), f"{nbytes / self.budget:.1%}", "-", "-", "-"]
            for name, nbytes in self.ready.items()
        ]
        header = ["pack", "bytes", "share", "loss, equal share", "loss", "gain of 1% more"]
        return Table(header, rows)


def split_budget(inputs: BuildInputs, models: BuildModels) -> BuildStep:
    """Split ``pack_budget`` over the skills that are zipped. The bytes of each are an input of its zip."""
    config = inputs.config
    assert config.pack_budget is not None
    budget, ready = config.pack_budget, _ready_bytes(inputs)
    zipped = [skill for skill in config.skills if skill not in inputs.packs]

    def work(folder: Path) -> None:
        left = budget - sum(ready.values()) - _reserved(inputs)
        curves = _curves(inputs, models, zipped, left, folder)
        shares = share_out(budget, ready, curves, reserved=_reserved(inputs))
        write_json(folder / _FILE, shares.model_dump(mode="json"))
        if len(zipped) > 1:
            console.print(shares.table().rich("one budget for all packs (loss: KL, thousandths of a nat a token)"))
        for skill in zipped:
            drop(folder / skill)

    needs = [BACKBONE]
    for skill in zipped:
        # The scores are on the pack's card, and count in its bytes.
        needs += [*inputs.prompt_inputs(skill), f"{skill}/delta", f"{skill}/score-base", f"{skill}/score-specialist"]
    settings = {
        "pack_budget": budget,
        "ready": ready,
        "reserved": _reserved(inputs),
        "zip": {
            skill: config.zip_config(skill).model_dump(mode="json", exclude={"ratio", "budget"}) for skill in zipped
        },
    }
    # A share that stays the same, although another one changed, leaves its pack as it is.
    makes = {f"{skill}/bytes": functools.partial(_share_key, inputs, skill) for skill in zipped}
    title = "weave: split the bytes over the packs"
    return BuildStep(_STEP, title, tuple(needs), settings, work, makes)


def read_shares(inputs: BuildInputs) -> Shares:
    """Return what the step of :func:`split_budget` wrote."""
    folder = inputs.work.step(_STEP)
    return read_model(folder / _FILE, Shares, again(folder))


def check_ready_packs(inputs: BuildInputs) -> None:
    """Raise :class:`UserError` if the ready packs alone take more than ``pack_budget``."""
    budget, ready = inputs.config.pack_budget, _ready_bytes(inputs)
    taken = sum(ready.values()) + _reserved(inputs)
    zipped = len(ready) < len(inputs.config.skills)
    if budget is not None and (taken > budget or (zipped and taken == budget)):
        raise UserError(
            f"pack_budget: {budget} bytes are too few: the ready packs ({', '.join(ready) or 'none'}) and what is "
            f"reserved for audits take {taken} bytes"
            + (", and the other skills need some, too" if zipped else "")
            + ": raise pack_budget, or leave out a pack"
        )


def check_bytes(inputs: BuildInputs) -> None:
    """Raise :class:`UserError` if the finished packs take more than ``pack_budget`` on disk."""
    budget = inputs.config.pack_budget
    taken = sum(map(inputs.pack_bytes, inputs.config.skills))
    if budget is not None and taken > budget:
        raise UserError(
            f"pack_budget: the packs take {taken} bytes, and {budget} are allowed: raise pack_budget by "
            f"{taken - budget} bytes or more"
        )


def share_out(budget: int, ready: dict[str, int], curves: dict[str, Curve | None], *, reserved: int = 0) -> Shares:
    """Return the split of ``budget``, of which the ``ready`` packs take their bytes first.

    The only skill of a weave has no curve: it gets all that is left. Raises :class:`UserError` if the least packs of
    all skills do not fit; the message names the bytes that would do.
    """
    left = budget - sum(ready.values()) - reserved
    measured = {skill: curve for skill, curve in curves.items() if curve is not None}
    least = sum(curve.least for curve in measured.values())
    if least > left:
        parts = [f"{name} {curve.least}" for name, curve in measured.items()]
        parts += [f"{name} {nbytes} (ready)" for name, nbytes in ready.items()]
        parts += [f"audits {reserved}"] if reserved else []
        raise UserError(
            f"pack_budget: {budget} bytes are too few: the packs of this weave take at least {least + budget - left} "
            f"bytes ({', '.join(parts)}). Raise pack_budget, leave out a skill, or accept partial packs with "
            "zip.allow_left_out: true"
        )
    given = dict(zip(measured, split(list(measured.values()), left), strict=True))
    equal = left / max(1, len(curves))
    skills = {}
    for skill, curve in curves.items():
        if curve is None:
            skills[skill] = SkillShare(bytes=left, points=[], loss=None, loss_of_equal=None, next_percent=None)
            continue
        loss = curve.loss(given[skill])
        skills[skill] = SkillShare(
            bytes=given[skill],
            points=list(curve.points),
            loss=loss,
            loss_of_equal=curve.loss(equal) if equal >= curve.least else None,
            next_percent=loss - curve.loss(1.01 * given[skill]),
        )
    return Shares(budget=budget, ready=ready, reserved=reserved, skills=skills)


def _curves(
    inputs: BuildInputs, models: BuildModels, skills: Sequence[str], left: int, folder: Path
) -> dict[str, Curve | None]:
    """Return what each skill loses at some sizes; None for the only one, which gets all ``left`` bytes anyway."""
    if len(skills) == 1:
        return {skills[0]: None}
    budgets = {max(1, min(left, int(size * left / len(skills)))) for size in _SIZES}
    curves: dict[str, Curve | None] = {}
    for skill in skills:
        settings, task = inputs.config.zip_config(skill), inputs.tasks[skill]
        examples = task.examples(("calibration", "train"), _PROMPTS)
        console.print(f"  {skill}: its pack is measured at {len(budgets) + 1} sizes, on {len(examples)} prompts")
        curves[skill] = loss_curve(
            Delta.from_pretrained(inputs.work.delta(skill)),
            models.backbone,
            task.pairs("calibration") if settings.needs_calibration else None,
            settings,
            [prompt for prompt, _ in examples],
            budgets,
            folder / skill,
            **inputs.card(skill),
        )
    return curves


def _ready_bytes(inputs: BuildInputs) -> dict[str, int]:
    return {name: pack.nbytes for name, pack in inputs.packs.items()}


def _reserved(inputs: BuildInputs) -> int:
    return _AUDIT_BYTES * len(inputs.config.skills) if inputs.config.audit is not None else 0


def _share_key(inputs: BuildInputs, skill: str) -> str:
    return str(read_shares(inputs).skills[skill].bytes)
