"""A report from start to end, and its figures, computed from those of its stages.

The stages are, in order:

- ``before``, ``after`` and ``reference``: a reading of each model
- ``relearn-forget`` and ``relearn-unrelated``: of the unlearnt model and, if there is one, of the reference
- ``stored``: only if the base is stored in fewer than 32 bits
- ``rounded-8``, ``rounded-4``
- ``zipped-16`` and, as long as each one restores something, ``zipped-8`` and ``zipped-4``
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
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.inputs import AFTER, BEFORE, REFERENCE, ReportModels, read_report_data
from skillweave.methods.cku.report.stages import (
    STORED,
    ReportStages,
    Zipper,
    relearn_stage,
    rounding_stage,
    zip_gap,
    zip_stage,
)
from skillweave.methods.training.run import Run
from skillweave.methods.training.trainer import quiet
from skillweave.report import machine, versions

Figures = dict[str, dict[str, Any]]


def make_report(
    base: Base, config: ReportConfig, folder: Path, *, command: str, zipper: Zipper | None = None
) -> dict[str, Any]:
    """Judge ``config.delta`` on ``base`` and return the report, as ``report.json`` stores it.

    - ``folder``: the work folder. If the run is killed and called again on the same folder, it resumes.
    - ``command``: the command line, which the report quotes
    - ``zipper``: makes the zips of ``config.zip``; without one there are no zip stages

    Raises :class:`UserError` if settings or files do not fit.
    """
    refs = {"delta": config.delta, "reference": config.reference}
    deltas = {key: Delta.from_pretrained(ref) for key, ref in refs.items() if ref is not None and is_delta(Path(ref))}
    if "delta" not in deltas:
        raise UserError(
            f"delta: {config.delta} is not a delta folder: set it to the `delta` folder in the output of `cku unlearn`"
        )
    for delta in deltas.values():
        delta.check_base(base.fingerprint, base.ref, base.model.config)
    if config.reference is not None and "reference" not in deltas:
        _check_vocabulary(base, config.reference)
    run = Run.begin("cku report", base, config, read_report_data(config), folder)
    models = ReportModels(run)
    with quiet():
        ReportStages(run, models, zipper).run_all()
    models.close()
    return {
        "base": {"ref": base.ref, "fingerprint": base.fingerprint},
        "delta": {"folder": str(config.delta), "provenance": dict(deltas["delta"].provenance)},
        **report_figures(run.figures, config),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seconds": sum(stage["seconds"] for stage in run.figures.values()),
    }


def _check_vocabulary(base: Base, reference: str) -> None:
    """Raise :class:`UserError` if a reference model has other tokens than the base: no figures could be compared."""
    if open_tokenizer(reference).get_vocab() != base.tokenizer.get_vocab():
        raise UserError(
            f"reference: {reference} has another vocabulary than the base {base.ref}: use the same base, trained in "
            "the same way without the forget set"
        )


def report_figures(stages: Figures, config: ReportConfig) -> dict[str, Any]:
    """Return the figures of the report, computed from those of its stages; None if an input was not given.

    - ``forgotten``: how much of the way from known to unknown was covered. Unknown is the reference's extraction
      strength, or else that of the unseen facts.
    - ``kept``: the share of the retain probability that was kept
    - ``robustness``: R and Q in one number
    """
    arms = {arm: stages[arm] for arm in (BEFORE, AFTER, REFERENCE) if arm in stages}
    before, after, reference = arms[BEFORE], arms[AFTER], arms.get(REFERENCE)
    floor = (reference or {}).get("forget_strength", before.get("unseen_strength", 0.0))
    lost = before["forget_strength"] - floor
    relearning = {kind: _relearning(stages, kind, reference is not None) for kind in ("forget", "unrelated")}
    rounding = {
        str(bits): _rounding(stages, rounding_stage(bits), after["forget_strength"]) for bits in config.rounding
    }
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
            {"ratio": ratio, "gap": zip_gap(stages, ratio), **stages[zip_stage(ratio)]}
            for ratio in config.zip
            if zip_stage(ratio) in stages
        ],
        "robustness": both,
    }


def _relearning(stages: Figures, kind: str, with_reference: bool) -> dict[str, Any]:
    unlearnt = stages[relearn_stage(kind, AFTER)]
    figures = {key: unlearnt[key] for key in ("known", "unlearnt", "strength", "examples", "steps")}
    figures["gap"] = relearning_gap(unlearnt["known"], unlearnt["unlearnt"], unlearnt["strength"])
    if with_reference:
        reference = stages[relearn_stage(kind, REFERENCE)]
        figures["reference"] = reference["strength"]
        figures["robustness"] = relearning_robustness(
            retain_gain=reference["strength"] - reference["unlearnt"],
            unlearned_gain=unlearnt["strength"] - unlearnt["unlearnt"],
        )
    return figures


def _rounding(stages: Figures, stage: str, unrounded: float) -> dict[str, Any]:
    """The figures of a rounding stage; ``unrounded`` is the forget strength of the unlearnt model's own weights."""
    rounded = stages[stage]
    return {
        **rounded,
        "gap": rounding_gap(stages[BEFORE]["forget_strength"], unrounded, rounded["forget_strength"]),
        "robustness": rounding_robustness(unrounded, rounded["forget_strength"]),
    }
