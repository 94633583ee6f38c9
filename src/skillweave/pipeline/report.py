"""The report of a build: its figures, and ``report.json``, ``report.md``, ``report.html`` and plots in the weave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skillweave.delta import Delta
from skillweave.pipeline.config import UNLEARNING
from skillweave.pipeline.evaluate import read_score
from skillweave.pipeline.inputs import BuildInputs, BuildModels
from skillweave.pipeline.plots import confusion_plot, memory_plot, skills_plot
from skillweave.pipeline.shares import Shares, read_shares
from skillweave.pipeline.speed import speed_note
from skillweave.pipeline.step import BACKBONE, read_result, step_seconds
from skillweave.pipeline.steps import ARMS, read_verdict
from skillweave.report import machine, versions
from skillweave.report.page import Section, write_page
from skillweave.report.table import Table
from skillweave.units import human_bytes

HELD_BACK = "The audit raised an alarm, so these packs are held back and not in the weave: {}."


def build_report(
    inputs: BuildInputs,
    models: BuildModels,
    keys: Mapping[str, str],
    command: str,
    held: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The report of a finished build, as ``report.json`` holds it.

    ``keys`` has the key of every input and of every step; ``command`` is the way to make the weave again. ``held`` are
    the skills that an audit held back, which ``inputs`` does not have, each with the evidence.
    """
    config, work = inputs.config, inputs.work
    confusion = read_result(work.step("weave/confusion"), "confusion.json", {"counts": list})
    skills = {skill: _skill_figures(inputs, skill) for skill in config.skills}
    routed = confusion["counts"][: len(skills)]  # of the skills' own prompts; the row after them is of everyday ones
    prompts = sum(map(sum, routed))
    base_bytes = models.backbone.nbytes
    return {
        "name": config.name,
        "base": {
            "ref": config.base,
            "fingerprint": inputs.fingerprint,
            "unlearnt": _unlearning_figures(inputs, keys[BACKBONE]),
        },
        "dtype": config.dtype,
        **({} if config.backbone is None else {"backbone": config.backbone}),
        "skills": skills,
        **({} if config.pack_budget is None else {"pack_budget": _budget_figures(inputs)}),
        **({} if config.audit is None else {"held_back": {skill: list(why) for skill, why in (held or {}).items()}}),
        "memory": {
            "base_bytes": base_bytes,
            "weave_bytes": models.weave.needed_bytes,
            "separate_bytes": base_bytes * len(skills),
        },
        "speed": read_result(work.step("weave/speed"), "speed.json", {"seconds": dict}),
        "router": {
            "accuracy": sum(row[index] for index, row in enumerate(routed)) / prompts,
            "abstained": sum(row[-1] for row in routed) / prompts,
            "confusion": confusion,
        },
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seconds": sum(step_seconds(work.step(name)) for name in keys),
    }


def _skill_figures(inputs: BuildInputs, skill: str) -> dict[str, Any]:
    """Scores with intervals, the gain kept, and bytes of one skill. A ready pack has no specialist and no delta."""
    work = inputs.work
    ready = skill in inputs.packs
    arms = [arm for arm in ARMS if arm != "specialist" or not ready]
    scores = {arm: read_score(work.step(f"{skill}/score-{arm}")) for arm in arms}
    gain = 0.0 if ready else scores["specialist"]["mean"] - scores["base"]["mean"]
    return {
        **{arm: scores[arm]["mean"] if arm in scores else None for arm in ARMS},
        "gain_kept": (scores["pack"]["mean"] - scores["base"]["mean"]) / gain if gain > 0 else None,
        "pack_bytes": inputs.pack_bytes(skill),
        "delta_bytes": None if ready else Delta.from_pretrained(work.delta(skill)).bf16_nbytes,
        "intervals": {arm: [score["low"], score["high"]] for arm, score in scores.items()},
        "prompts": scores["base"]["n"],
        **({} if inputs.config.audit is None else {"audit": read_verdict(work.step(f"{skill}/audit"))}),
    }


def _budget_figures(inputs: BuildInputs) -> dict[str, Any]:
    """The bytes of all packs, and how they were split, if any pack was zipped."""
    split = any(skill not in inputs.packs for skill in inputs.config.skills)
    return {
        "bytes": inputs.config.pack_budget,
        "taken": sum(map(inputs.pack_bytes, inputs.config.skills)),
        **({"shares": read_shares(inputs).model_dump(mode="json")} if split else {}),
    }


def _unlearning_figures(inputs: BuildInputs, backbone: str) -> dict[str, Any] | None:
    """The unlearning's files, the fingerprint of the backbone, and figures from before and after; None without it.

    The figures are those of the run's stages ``before`` and ``after`` that both have, and whose names end in
    ``strength`` (how much can be extracted) or ``probability`` (how likely the answers are).
    """
    settings = inputs.config.unlearn
    if settings is None:
        return None
    stages = read_result(inputs.work.unlearning, "figures.json", {"stages": dict})["stages"]
    before, after = stages["before"], stages["after"]
    names = [name for name in before if name in after and name.endswith(("strength", "probability"))]
    return {
        "method": UNLEARNING,
        "fingerprint": backbone,
        "forget": [str(file) for file in settings.forget],
        "retain": [str(file) for file in settings.retain],
        "before": {name: before[name] for name in names},
        "after": {name: after[name] for name in names},
    }


def skill_table(report: dict[str, Any]) -> Table:
    """A row for each skill: scores in percent with 95% intervals, the gain kept, bytes of pack and delta."""

    def score(skill: dict[str, Any], arm: str) -> str:
        if skill.get(arm) is None:
            return "-"
        low, high = skill["intervals"][arm]
        return f"{100 * skill[arm]:.1f} ({100 * low:.0f}-{100 * high:.0f})"

    rows = []
    for name, skill in report["skills"].items():
        kept = "-" if skill["gain_kept"] is None else f"{100 * skill['gain_kept']:.1f}%"
        delta = skill["delta_bytes"]
        size = human_bytes(skill["pack_bytes"]) + (f" (1/{delta / skill['pack_bytes']:.1f})" if delta else "")
        arms = [score(skill, arm) for arm in ("base", "specialist", "pack", "routed")]
        rows.append([name, *arms, kept, size, human_bytes(delta) if delta else "-"])
    header = ["skill", "base", "specialist", "pack", "routed weave", "gain kept", "pack bytes", "bf16 delta"]
    return Table(header, rows)


def short_skill_table(report: dict[str, Any]) -> Table:
    """:func:`skill_table` for a terminal of 80 columns: without intervals, the pack as a share of its bf16 delta."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    rows = []
    for name, skill in report["skills"].items():
        delta = skill["delta_bytes"]
        share = f"1/{delta / skill['pack_bytes']:.1f}" if delta else "-"
        arms = [percent(skill.get(arm)) for arm in ("base", "specialist", "pack", "routed")]
        rows.append([name, *arms, percent(skill["gain_kept"]), human_bytes(skill["pack_bytes"]), share])
    header = ["skill", "base", "specialist", "pack", "routed", "gain\nkept", "pack\nbytes", "of bf16\ndelta"]
    return Table(header, rows)


def memory_table(report: dict[str, Any]) -> Table:
    """Bytes of weights of base, weave and separate models; each also as a multiple of the base."""
    memory = report["memory"]
    names = {
        "base alone": "base_bytes",
        "weave, all packs in memory": "weave_bytes",
        "separate models": "separate_bytes",
    }
    rows = [
        [name, human_bytes(memory[key]), f"{memory[key] / memory['base_bytes']:.2f}x"] for name, key in names.items()
    ]
    return Table(["in memory", "bytes", "of the base"], rows)


def confusion_table(report: dict[str, Any]) -> Table:
    """How many test prompts of each skill the router sent to each pack."""
    confusion = report["router"]["confusion"]
    rows = [[name, *map(str, counts)] for name, counts in zip(confusion["rows"], confusion["counts"], strict=True)]
    return Table(["prompts of", *(f"to {name}" for name in confusion["columns"])], rows)


def write_build_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``plots/*.svg`` into the weave folder."""
    confusion = report["router"]["confusion"]
    routes = confusion_plot(confusion["rows"], confusion["columns"], confusion["counts"])
    sections = {
        "skills": Section("What each skill scores", skill_table(report), skills_plot(report["skills"])),
        "memory": Section("What it costs in memory", memory_table(report), memory_plot(report["memory"])),
        "router": Section("Where the router sends the prompts", confusion_table(report), routes),
    }
    shares = report.get("pack_budget", {}).get("shares")
    if shares is not None and len(shares["skills"]) > 1:
        sections["shares"] = Section("How the bytes were split", Shares.model_validate(shares).table())
    write_page(folder, f"{report['name']}: report of the build", _notes(report), sections, report)


def _notes(report: dict[str, Any]) -> list[str]:
    router, memory, base = report["router"], report["memory"], report["base"]
    return [
        f"Base {base['ref']} ({base['fingerprint'][:23]}...), served in {report['dtype']}{_layers_in(report)}.",
        *([_unlearnt_note(base["unlearnt"])] if base.get("unlearnt") else []),
        *_audit_notes(report),
        *_budget_notes(report),
        'Scores are means over the test prompts in percent, with 95% intervals. "Pack" is the pack named by the caller '
        '(oracle routing), "routed weave" leaves the choice to the router.',
        f"The router sends {100 * router['accuracy']:.1f}% of the test prompts to their own skill and leaves "
        f"{100 * router['abstained']:.1f}% to the plain base.",
        f"All packs together in memory: {memory['weave_bytes'] / memory['base_bytes']:.2f}x the base.",
        speed_note(report["speed"], len(report["skills"])),
    ]


def _audit_notes(report: dict[str, Any]) -> list[str]:
    """What the audits of the packs found; nothing if there were none."""
    if "held_back" not in report:
        return []
    held = report["held_back"]
    outcomes = "; ".join(f"{name}: {skill['audit']['outcome']}" for name, skill in report["skills"].items())
    return [
        f"Audits of the packs: {outcomes}.",
        *([HELD_BACK.format(", ".join(held))] if held else []),
        *(f"{name}: {' '.join(evidence)}" for name, evidence in held.items()),
    ]


def _budget_notes(report: dict[str, Any]) -> list[str]:
    """How many bytes the packs were allowed and take; nothing if there is no budget for all."""
    figures = report.get("pack_budget")
    if figures is None:
        return []
    note = f"All packs together take {human_bytes(figures['taken'])} of the {human_bytes(figures['bytes'])} allowed."
    if "shares" in figures and len(figures["shares"]["skills"]) > 1:
        note += (
            " The bytes were split so that the packs lose the least together; the loss is the KL from each specialist "
            "that its measured curve predicts, before any refinement."
        )
    return [note]


def _unlearnt_note(unlearnt: dict[str, Any]) -> str:
    """One sentence on what was unlearnt, with the figures before and after."""
    figures = [
        f"{name.replace('_', ' ')} {value:.3g} before, {unlearnt['after'][name]:.3g} after"
        for name, value in unlearnt["before"].items()
    ]
    return (
        f"Unlearnt by {unlearnt['method']} before anything else: what {', '.join(unlearnt['forget'])} holds was taken "
        f'out. Every skill is built on what is left ({unlearnt["fingerprint"][:23]}...), which "base" means below'
        + "".join(f"; {figure}" for figure in figures)
        + "."
    )


def _layers_in(report: Mapping[str, Any]) -> str:
    return ", linear layers in int8" if "backbone" in report else ""
