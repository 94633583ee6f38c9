"""The report of a build: ``report.json``, ``report.md``, ``report.html`` and the plots, in the weave folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillweave.pipeline.plots import confusion_plot, memory_plot, skills_plot
from skillweave.report.page import Section, write_page
from skillweave.report.table import Table
from skillweave.units import human_bytes


def skill_table(report: dict[str, Any]) -> Table:
    """Per skill: scores in percent with 95% intervals, the gain kept, bytes of pack and delta."""

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
    """:func:`skill_table` for a terminal of 80 columns: no intervals, the pack as a share of its bf16 delta."""

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
    """Bytes of weights: base, weave, separate models; each also as a multiple of the base."""
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
    """Where the router sent the test prompts of each skill."""
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
    write_page(folder, f"{report['name']}: report of the build", _notes(report), sections, report)


def _notes(report: dict[str, Any]) -> list[str]:
    router, memory, base = report["router"], report["memory"], report["base"]
    return [
        f"Base {base['ref']} ({base['fingerprint'][:23]}...), served in {report['dtype']}.",
        *([_unlearnt_note(base["unlearnt"])] if base.get("unlearnt") else []),
        'Scores are means over the test prompts in percent, with 95% intervals. "Pack" is the pack named by the caller '
        '(oracle routing), "routed weave" leaves the choice to the router.',
        f"The router sends {100 * router['accuracy']:.1f}% of the test prompts to their own skill and leaves "
        f"{100 * router['abstained']:.1f}% to the plain base.",
        f"All packs together in memory: {memory['weave_bytes'] / memory['base_bytes']:.2f}x the base.",
    ]


def _unlearnt_note(unlearnt: dict[str, Any]) -> str:
    """What was taken out of the base, and the figures of it before and after."""
    figures = [
        f"{name.replace('_', ' ')} {value:.3g} before, {unlearnt['after'][name]:.3g} after"
        for name, value in unlearnt["before"].items()
    ]
    return (
        f"Unlearnt by {unlearnt['method']} before anything else: what {', '.join(unlearnt['forget'])} holds was taken "
        f'out. Every skill stands on what is left ({unlearnt["fingerprint"][:23]}...), which "base" means below'
        + "".join(f"; {figure}" for figure in figures)
        + "."
    )
