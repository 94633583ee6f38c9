"""The tables, plots and page of a report: what was forgotten, what was kept, and what the probes bring back."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from skillweave.report.page import Section, write_page
from skillweave.report.plots import draw_bars
from skillweave.report.table import Table
from skillweave.units import human_bytes

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
ARMS = {"before": "#999999", "after": "#0072B2", "reference": "#009E73"}
PROBED = {"before": "#999999", "after": "#0072B2", "after the probe": "#D55E00", "reference after it": "#009E73"}

_SIDES = {"forget": "to forget", "unseen": "never taught", "retain": "to retain", "lookalike": "look-alikes"}


@dataclass(frozen=True)
class Probe:
    """An attempt to bring the knowledge back: extraction strengths on the forget set, in [0, 1]; None: not measured."""

    name: str
    before: float
    after: float
    probed: float | None
    """The unlearnt model after the probe"""
    gap: float | None
    """The share of what was lost that came back"""
    reference: float | None = None
    """The reference after the probe"""
    robustness: float | None = None
    """R or Q, in [0, 1]"""


def probes(report: Mapping[str, Any]) -> list[Probe]:
    """Return all probes of a report, in its order."""
    before, after = (report["arms"][arm]["forget_strength"] for arm in ("before", "after"))
    forget, unrelated = report["relearning"]["forget"], report["relearning"]["unrelated"]
    relearnt = [
        Probe(
            name=name,
            before=entry["known"],
            after=entry["unlearnt"],
            probed=entry["strength"],
            gap=entry["gap"],
            reference=entry.get("reference"),
            robustness=entry.get("robustness"),
        )
        for name, entry in (
            (f"{forget['examples']} facts relearnt", forget),
            (f"{unrelated['examples']} unrelated examples", unrelated),
        )
    ]
    compressed = [
        Probe(
            name=name,
            before=before,
            after=after,
            probed=entry.get("forget_strength"),
            gap=entry["gap"],
            robustness=entry.get("robustness"),
        )
        for name, entry in _compressed(report)
    ]
    return [*relearnt, *compressed]


def short_unlearn_table(report: Mapping[str, Any]) -> Table:
    """What each model knows, refuses and scores, for a terminal of 80 columns."""
    arms = report["arms"]
    wanted = [
        ("to forget: extraction strength", "forget_strength"),
        ("never taught: extraction strength", "unseen_strength"),
        ("to retain: probability", "retain_probability"),
        ("look-alikes: probability", "lookalike_probability"),
        ("look-alikes refused", "lookalike_refused"),
    ]
    rows = [[name, *(percent(arm.get(key)) for arm in arms.values())] for name, key in wanted if key in arms["before"]]
    rows += [[name, *(percent(arm["tasks"][name]["mean"]) for arm in arms.values())] for name in _tasks(report)]
    return Table(["", *arms], rows)


def short_probe_table(report: Mapping[str, Any]) -> Table:
    """:func:`probe_table` for a terminal of 80 columns: nothing of the reference."""
    rows = [
        [probe.name, *map(percent, (probe.before, probe.after, probe.probed, probe.gap))] for probe in probes(report)
    ]
    return Table(["probe", "before", "after", "after\nthe probe", "came back"], rows)


def known_table(report: Mapping[str, Any]) -> Table:
    """How well each model knows each set."""
    arms = report["arms"]
    figures = {
        "strength": ("extraction strength", percent),
        "memorised": ("exact memorisation", percent),
        "probability": ("probability", percent),
    }
    of_forget = {
        "truth_ratio": ("truth ratio", plain),
        "membership_loss": ("membership by loss (AUC)", plain),
        "membership_min_k": ("membership by min-k (AUC)", plain),
    }
    rows = []
    for side, called in _SIDES.items():
        shown = {f"{side}_{key}": value for key, value in figures.items()} | (of_forget if side == "forget" else {})
        rows += [
            [f"{called}: {name}", *(write(arm.get(key)) for arm in arms.values())]
            for key, (name, write) in shown.items()
            if key in arms["before"]
        ]
    return Table(["", *arms], rows)


def task_table(report: Mapping[str, Any]) -> Table:
    """The scores of each model on the tasks, in percent with 95% intervals."""

    def score(figures: Mapping[str, float]) -> str:
        return f"{100 * figures['mean']:.1f} ({100 * figures['low']:.0f}-{100 * figures['high']:.0f})"

    arms = report["arms"]
    return Table(
        ["task", *arms, "prompts"],
        [
            [name, *(score(arm["tasks"][name]) for arm in arms.values()), str(arms["before"]["tasks"][name]["n"])]
            for name in _tasks(report)
        ],
    )


def refusal_table(report: Mapping[str, Any]) -> Table:
    """The share of each set's prompts that each model refuses."""
    arms = report["arms"]
    return Table(
        ["prompts", *arms],
        [[name, *(percent(arm[key]) for arm in arms.values())] for key, name in _refusals(report).items()],
    )


def probe_table(report: Mapping[str, Any]) -> Table:
    """Extraction strength on the forget set before and after each probe, and the share that came back."""
    rows = [
        [
            probe.name,
            *map(percent, (probe.before, probe.after, probe.probed, probe.gap, probe.reference)),
            plain(probe.robustness),
        ]
        for probe in probes(report)
    ]
    header = ["probe", "before", "after", "after the probe", "came back", "reference after it", "robustness"]
    return Table(header, rows)


def compressed_table(report: Mapping[str, Any]) -> Table:
    """How well the unlearnt model and the one before know both sets when their weights are rounded or zipped."""
    arms = report["arms"]
    keys = ("forget_strength", "retain_probability")
    rows = [["as trained", *(percent(arms[arm][key]) for key in keys for arm in ("before", "after")), "-"]]
    for name, entry in _compressed(report):
        cells = [percent(entry.get(f"{prefix}{key}")) for key in keys for prefix in ("before_", "")]
        size = entry.get("pack_bytes")
        rows.append([name, *cells, "-" if size is None else human_bytes(size)])
    header = ["weights", "forget strength, before", "after", "retain probability, before", "after", "pack"]
    return Table(header, rows)


def known_plot(report: Mapping[str, Any]) -> Figure:
    """Extraction strength and probability of every set, by arm."""
    arms = report["arms"]
    sides = [side for side in _SIDES if f"{side}_strength" in arms["before"]]
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    for axes, (key, label) in zip(
        figure.subplots(1, 2), (("strength", "extraction strength, %"), ("probability", "probability, %")), strict=True
    ):
        groups = {_SIDES[side]: {arm: figures[f"{side}_{key}"] for arm, figures in arms.items()} for side in sides}
        draw_bars(axes, groups, _colours(report))
        axes.set_ylabel(label)
    return figure


def task_plot(report: Mapping[str, Any]) -> Figure:
    """The scores on the tasks, by arm, with 95% intervals."""
    arms, names = report["arms"], _tasks(report)
    figure = Figure(figsize=(max(5.0, 1.8 * len(names)), 3.2), layout="constrained")
    axes = figure.subplots()
    draw_bars(
        axes,
        {name: {arm: figures["tasks"][name]["mean"] for arm, figures in arms.items()} for name in names},
        _colours(report),
        [
            {arm: [figures["tasks"][name][end] for end in ("low", "high")] for arm, figures in arms.items()}
            for name in names
        ],
    )
    axes.set_ylabel("score on test prompts, %")
    return figure


def refusal_plot(report: Mapping[str, Any]) -> Figure:
    """The share of refused prompts, by arm."""
    arms = report["arms"]
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    groups = {name: {arm: figures[key] for arm, figures in arms.items()} for key, name in _refusals(report).items()}
    draw_bars(axes, groups, _colours(report))
    axes.set_ylabel("refused, %")
    return figure


def probe_plot(report: Mapping[str, Any]) -> Figure:
    """Extraction strength on the forget set before, after, and after each probe."""
    groups = {
        textwrap.fill(probe.name, 12): dict(
            zip(PROBED, (probe.before, probe.after, probe.probed, probe.reference), strict=True)
        )
        for probe in probes(report)
    }
    shown = {
        name: colour for name, colour in PROBED.items() if any(group[name] is not None for group in groups.values())
    }
    figure = Figure(figsize=(max(6.0, 1.4 * len(groups)), 3.4), layout="constrained")
    axes = figure.subplots()
    draw_bars(axes, groups, shown)
    axes.set_ylabel("extraction strength\non the forget set, %")
    axes.tick_params(axis="x", labelsize=8)
    return figure


def write_unlearn_report(report: dict[str, Any], folder: Path) -> None:
    """Write a report of :func:`~skillweave.methods.cku.report.run.make_report` as JSON, Markdown, HTML and plots."""
    sections = {"known": Section("What is forgotten, and what is kept", known_table(report), known_plot(report))}
    if _tasks(report):
        sections["tasks"] = Section("What it can still do", task_table(report), task_plot(report))
    if _refusals(report):
        sections["refusals"] = Section("What it refuses", refusal_table(report), refusal_plot(report))
    sections["probes"] = Section("What the probes bring back", probe_table(report), probe_plot(report))
    if _compressed(report):
        sections["rewritten"] = Section("What is left when the weights are rounded or zipped", compressed_table(report))
    about = report["delta"]["provenance"].get("task", report["delta"]["folder"])
    write_page(folder, f"{about}: report of the unlearning", _notes(report), sections, report)


def percent(share: float | None) -> str:
    """Return a share as ``12.3%``, and ``-`` for None."""
    return "-" if share is None else f"{100 * share:.1f}%"


def plain(value: float | None) -> str:
    """Return a number with three digits, a small one as ``1.2e-05``; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    base, delta, arms = report["base"], report["delta"], report["arms"]
    method = delta["provenance"].get("method", "a delta")
    notes = [
        f'"Before" is {base["ref"]} ({base["fingerprint"][:23]}...). "After" is the same with {delta["folder"]} on it '
        f"(made by {method})."
        + (' "Reference" is a model that never saw the forget set.' if "reference" in arms else ""),
        _summary(report),
        "Extraction strength: the share of an answer that greedy decoding completes by itself from the text before it. "
        "Exact memorisation: the share of the answer's tokens that are the model's first choice. Probability: the "
        "geometric mean over the answer's tokens. Truth ratio: how likely wrong answers are compared with the right "
        "one; 0: the fact is known, 1: all answers are equally likely. Membership: at 0.5 the forget set cannot be "
        "told from facts that were never taught; far below 0.5 it stands out too.",
        "Came back: the share of what was lost that a probe brings back. After relearning it is measured on those "
        'facts of the forget set that were not trained on again. "-": nothing was lost.',
    ]
    if "reference" in arms:
        notes.append(
            f"Forget quality {plain(report['forget_quality'])}: the p-value of a test whether the truth ratios are "
            "those of the reference; near 1 the two cannot be told apart. Robustness against relearning and rounding "
            f"together: {plain(report['robustness'])} (1: as if the model had never known the facts)."
        )
    else:
        notes.append(
            "No reference was given. Forget quality and the robustness against relearning need one: a model that never "
            "saw the forget set."
        )
    for name, entry in _compressed(report):
        if "too_small" in entry:
            notes.append(f"{name}: no pack can be that small. {entry['too_small']}")
    return notes


def _summary(report: Mapping[str, Any]) -> str:
    """The result in one or two sentences."""
    arms = report["arms"]
    forgotten = "the base did not know the forget set better than facts that were never taught"
    if report["forgotten"] is not None:
        level = "the reference's" if "reference" in arms else "that of unseen facts" if _has_unseen(report) else "0"
        forgotten = (
            f"forgotten {percent(report['forgotten'])}: the extraction strength on the forget set went from "
            f"{percent(arms['before']['forget_strength'])} to {percent(arms['after']['forget_strength'])} "
            f"(100% would be {level})"
        )
    gaps = {probe.name: probe.gap for probe in probes(report) if probe.gap is not None}
    worst = max(gaps, key=gaps.__getitem__, default=None)
    back = "" if worst is None else f" The probe that brings back the most: {worst}, {percent(gaps[worst])}."
    kept = f"kept {percent(report['kept'])} of the retain answers' probability"
    return f"{forgotten[0].upper()}{forgotten[1:]}; {kept}.{back}"


def _has_unseen(report: Mapping[str, Any]) -> bool:
    return "unseen_strength" in report["arms"]["before"]


def _compressed(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The names and the figures of the probes that round the weights or zip the delta."""
    stored = [] if report["stored"] is None else [("the base's dtype", report["stored"])]
    return [
        *stored,
        *((f"{bits} bits", entry) for bits, entry in report["rounding"].items()),
        *((f"zipped 1/{1 / entry['ratio']:g}", entry) for entry in report["zipped"]),
    ]


def _tasks(report: Mapping[str, Any]) -> Sequence[str]:
    return list(report["arms"]["before"]["tasks"])


def _refusals(report: Mapping[str, Any]) -> dict[str, str]:
    """The keys of the refusal figures, with the names of their sets."""
    keys = {f"{side}_refused": name for side, name in _SIDES.items()}
    return {key: name for key, name in keys.items() if key in report["arms"]["before"]}


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    return {arm: colour for arm, colour in ARMS.items() if arm in report["arms"]}
