"""A report from start to end, and what is made of the stages' figures.

The stages are ``before``, ``after`` and ``reference`` (a reading of each model), ``relearn-forget`` and
``relearn-unrelated`` (of the unlearnt model and, where there is one, of the reference), ``stored`` (where the base is
stored in fewer than 32 bits), ``rounded-8``, ``rounded-4``, ``zipped-16`` and, where that brings something back,
``zipped-8`` and ``zipped-4``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillweave.base import Base, open_tokenizer
from skillweave.delta import Delta, is_delta
from skillweave.errors import UserError
from skillweave.methods.cku.knowledge.metrics import (
    forget_quality,
    relearning_gap,
    relearning_robustness,
    robustness,
    rounding_gap,
    rounding_robustness,
)
from skillweave.methods.cku.report.asked import read_asked
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.models import AFTER, BEFORE, REFERENCE, Models
from skillweave.methods.cku.report.stages import STORED, Stages, Zipper, relearn, rounded, zip_gap, zipped
from skillweave.methods.training.run import Run
from skillweave.report import machine, versions

Figures = dict[str, dict[str, Any]]


def report(
    base: Base, config: ReportConfig, folder: Path, *, command: str, zipper: Zipper | None = None
) -> dict[str, Any]:
    """Judge ``config.delta`` on ``base``; the report as ``report.json`` holds it. ``folder`` is the work folder.

    ``zipper`` makes the zips of ``config.zip``; without one none is tried. Called again on the same folder it goes on
    where it was cut off. Raises :class:`UserError`.
    """
    from skillweave.methods.training.trainer import quiet

    given = {"delta": config.delta, "reference": config.reference}
    deltas = {key: Delta.from_pretrained(ref) for key, ref in given.items() if ref is not None and is_delta(Path(ref))}
    if "delta" not in deltas:
        raise UserError(f"delta: {config.delta} is no delta folder: name the `delta` folder that `cku unlearn` left")
    for delta in deltas.values():
        delta.check_base(base.fingerprint, base.ref)
    if config.reference is not None and "reference" not in deltas:
        _check_vocabulary(base, config.reference)
    run = Run.begin("cku report", base, config, read_asked(config), folder)
    models = Models(run)
    with quiet():
        Stages(run, models, zipper).all()
    models.close()
    return {
        "base": {"ref": base.ref, "fingerprint": base.fingerprint},
        "delta": {"folder": str(config.delta), "provenance": dict(deltas["delta"].provenance)},
        **judged(run.figures, config),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seconds": sum(stage["seconds"] for stage in run.figures.values()),
    }


def _check_vocabulary(base: Base, reference: str) -> None:
    """Raise :class:`UserError` where a reference model reads other tokens than the base: no figures would compare."""
    if open_tokenizer(reference).get_vocab() != base.tokenizer.get_vocab():
        raise UserError(
            f"reference: {reference} has another vocabulary than the base {base.ref}: it is to be the same base, "
            "taught the same without the forget set"
        )


def judged(stages: Figures, config: ReportConfig) -> dict[str, Any]:
    """The figures of the report, from those of its stages; None where what it takes was not given.

    ``forgotten``: the share of the way from what was known to not knowing (the reference's extraction strength, else
    that of unseen facts); ``kept``: the share of retain's probability; ``robustness``: R and Q in one.
    """
    arms = {arm: stages[arm] for arm in (BEFORE, AFTER, REFERENCE) if arm in stages}
    before, after, reference = arms[BEFORE], arms[AFTER], arms.get(REFERENCE)
    floor = (reference or {}).get("forget_strength", before.get("unseen_strength", 0.0))
    lost = before["forget_strength"] - floor
    relearning = {kind: _relearning(stages, kind, reference is not None) for kind in ("forget", "unrelated")}
    rounding = {str(bits): _rounding(stages, rounded(bits), after["forget_strength"]) for bits in config.rounding}
    both = quality = None
    if reference is not None:
        if rounding:
            worst = min(entry["robustness"] for entry in rounding.values())
            both = robustness(relearning["forget"]["robustness"], worst)
        if "truth_ratios" in after:
            quality = forget_quality(after["truth_ratios"], reference["truth_ratios"])
    return {
        "arms": arms,
        "forgotten": (before["forget_strength"] - after["forget_strength"]) / lost if lost > 0 else None,
        "kept": after["retain_probability"] / before["retain_probability"],
        "forget_quality": quality,
        "relearning": relearning,
        "stored": _rounding(stages, STORED, stages[STORED]["whole_strength"]) if STORED in stages else None,
        "rounding": rounding,
        "zipped": [
            {"ratio": ratio, "gap": zip_gap(stages, ratio), **stages[zipped(ratio)]}
            for ratio in config.zip
            if zipped(ratio) in stages
        ],
        "robustness": both,
    }


def _relearning(stages: Figures, kind: str, with_reference: bool) -> dict[str, Any]:
    found = stages[relearn(kind, AFTER)]
    figures = {key: found[key] for key in ("known", "unlearnt", "strength", "examples", "steps")}
    figures["gap"] = relearning_gap(found["known"], found["unlearnt"], found["strength"])
    if with_reference:
        other = stages[relearn(kind, REFERENCE)]
        figures["reference"] = other["strength"]
        figures["robustness"] = relearning_robustness(
            retain_gain=other["strength"] - other["unlearnt"], unlearned_gain=found["strength"] - found["unlearnt"]
        )
    return figures


def _rounding(stages: Figures, stage: str, whole: float) -> dict[str, Any]:
    """The figures of a rounding, beside ``whole``, the forget strength of the unlearnt model's weights unrounded."""
    found = stages[stage]
    return {
        **found,
        "gap": rounding_gap(stages[BEFORE]["forget_strength"], whole, found["forget_strength"]),
        "robustness": rounding_robustness(whole, found["forget_strength"]),
    }
