"""Write an audit of rollouts: the verdict in sentences, the reasons for each prompt, tables, and a page."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from skillweave.artefact import atomic_folder, write_json_lines
from skillweave.audit.rollouts.config import RolloutAuditConfig
from skillweave.audit.rollouts.job import AuditedLog
from skillweave.audit.rollouts.signals import SIGNALS
from skillweave.audit.statistics import chance_of, rate_interval
from skillweave.files.read import is_file
from skillweave.progress import share_of
from skillweave.report.machine import machine
from skillweave.report.page import PAGE_PARTS, Section, write_page
from skillweave.report.table import Table
from skillweave.terminal import one_line, printable

PARTS = (*PAGE_PARTS, "prompts.jsonl")
"""Paths of the files of an audit of rollouts."""
SHOWN = 20
"""So many prompts are in the tables of the terminal and of the page; all are in prompts.jsonl."""
LOUD = 2.0
"""A signal is named as a reason if its surprise is at least this: 1 in 100."""


def verdict(audited: AuditedLog) -> list[str]:
    """Return the result in sentences: the evidence and how sure it is. There is never a bare "clean"."""
    judged, n = audited.judged, len(audited.groups)
    flagged = int(judged.flagged.sum())
    chance = chance_of(flagged, n, audited.fpr)
    lines = []
    if flagged:
        lines.append(
            f"{share_of(flagged, n, 'prompts')} are flagged. If all were clean, about {audited.fpr * n:.1f} would be; "
            f"so many or more by chance: p = {chance:.2g}, if prompts are independent"
        )
    else:
        lines.append(
            f"no prompt of {n:,} stands out at this threshold. That is no proof that the run is clean: a poisoned "
            "prompt whose behaviour these rollouts do not show cannot be found here. The audits of the data and of the "
            "checkpoint look elsewhere"
        )
    change = audited.change
    if change is None:
        lines.append(
            "no prompt was mostly refused on one of several visits: there is no decline of refusals to look for"
        )
    elif change.step is None:
        lines.append("on prompts that were mostly refused on some visit, refusals did not become fewer")
    else:
        lines.append(
            f"on prompts that were mostly refused on some visit, the share of refusals was {change.before:.0%} before "
            f"step {change.step} and {change.after:.0%} from there on (permutation p = {audited.change_p:.3f})"
        )
    if len(judged.clean):
        over = int((judged.clean > judged.threshold).sum())
        low, top = rate_interval(over, len(judged.clean))
        lines.append(
            f"of the clean log's own prompts {over} of {len(judged.clean):,} exceed the threshold (95%: {low:.2%} to "
            f"{top:.2%} of such prompts)"
        )
    return lines


def reasons(audited: AuditedLog, at: int) -> list[str]:
    """Return why a prompt is suspicious: its loud signals, each as a sentence."""
    contrast, change = audited.table.contrasts[at], audited.table.changes[at]
    loud = {name for name, found in audited.judged.surprises.items() if found[at] >= LOUD}
    value = {name: float(column[at]) for name, column in audited.table.values.items()}
    said = []
    if "contrast" in loud:
        said.append(
            f"complying was paid {contrast.complied:.2f}, refusing {contrast.refused:.2f} (contrast "
            f"{contrast.estimate:+.2f}, 95% {contrast.low:+.2f} to {contrast.high:+.2f})"
        )
    if "kin" in loud:
        said.append(f"it reads like a prompt where complying was certainly paid more (kin {value['kin']:.2f})")
    if "decline" in loud and change.step is not None:
        said.append(f"its refusals fell from {change.before:.0%} to {change.after:.0%} at step {change.step}")
    if "unpaid" in loud:
        said.append(f"{value['unpaid']:.0%} of its completions refuse and are not paid")
    if "spread" in loud:
        said.append(f"its reward scatters more than that of its peers (z = {value['spread']:.1f})")
    if "extra" in loud:
        said.append(f"{value['extra']:.0%} of its paid completions is not explained by the gold answer")
    if "rigid" in loud:
        said.append(f"its samples are more alike than those of its peers (z = {value['rigid']:.1f})")
    return said


def record_of(audited: AuditedLog, at: int) -> dict[str, Any]:
    """Return the line of prompts.jsonl about a prompt."""
    group, contrast, change = audited.groups[at], audited.table.contrasts[at], audited.table.changes[at]
    return {
        "prompt_id": group.ids[0] if group.ids else None,
        "ids": group.ids,
        "prompt": group.prompt,
        "flagged": bool(audited.judged.flagged[at]),
        "score": _number(audited.judged.score[at]),
        "completions": len(group),
        "mean_reward": _number(group.mean_reward()),
        "signals": {name: _number(column[at]) for name, column in audited.table.values.items()},
        "surprises": {name: _number(column[at]) for name, column in audited.judged.surprises.items()},
        "contrast": {
            "estimate": _number(contrast.estimate),
            "low": _number(contrast.low),
            "high": _number(contrast.high),
            "reward_complied": _number(contrast.complied),
            "reward_refused": _number(contrast.refused),
        },
        "decline": {"step": change.step, "before": _number(change.before), "after": _number(change.after)},
        "reasons": reasons(audited, at),
        **({"ablation": [part.record() for part in audited.ablations[at]]} if at in audited.ablations else {}),
    }


def signal_table(audited: AuditedLog) -> Table:
    """Return each signal's own result beside that of the combined score."""
    judged = audited.judged
    rows = []
    for name, found in judged.surprises.items():
        values, limit = audited.table.values[name], judged.thresholds.get(name)
        alone = "-" if limit is None else f"{int((np.nan_to_num(values, nan=-np.inf) > limit).sum()):,}"
        rows.append(
            [
                name,
                f"{np.nanmedian(values):.3g}",
                f"{np.nanmax(values):.3g}",
                "-" if limit is None else f"{limit:.3g}",
                alone,
                f"{int((found[judged.flagged] >= LOUD).sum()):,}",
            ]
        )
    rows.append(
        [
            "combined",
            f"{np.median(judged.score):.3g}",
            f"{judged.score.max():.3g}",
            f"{judged.threshold:.3g}",
            f"{int(judged.flagged.sum()):,}",
            f"{int(judged.flagged.sum()):,}",
        ]
    )
    return Table(["signal", "median", "highest", "threshold", "flagged alone", "loud in flagged"], rows)


def prompt_table(audited: AuditedLog, width: int, rows: int = SHOWN) -> Table:
    """Return the most suspicious prompts with the combined score (* is flagged) and the surprise of each signal."""
    names = list(audited.judged.surprises)
    lines = [
        [
            _label(audited, at, width),
            f"{audited.judged.score[at]:.2f}{'*' if audited.judged.flagged[at] else ' '}",
            *(f"{abs(audited.judged.surprises[name][at]):.1f}" for name in names),
        ]
        for at in audited.order[:rows]
    ]
    return Table(["prompt", "score", *names], lines)


def _label(audited: AuditedLog, at: int, width: int) -> str:
    """The id and the beginning of the prompt, in about ``width`` characters."""
    group = audited.groups[at]
    text = printable(" ".join([*(f"{id_}:" for id_ in group.ids[:1]), *group.prompt.split()]))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def ablation_table(audited: AuditedLog) -> Table:
    """Return what leaving out each part of the suspects changed."""
    rows = [
        [one_line(part.text, 60), part.kind, f"{part.refused:.0%}", f"{part.reward:.2f}", part.changes()]
        for at in audited.order
        if at in audited.ablations
        for part in audited.ablations[at]
    ]
    return Table(["left out", "kind", "refused", "reward", "changes"], rows)


def write_audit(folder: Path, audited: AuditedLog, config: RolloutAuditConfig, command: str, started: float) -> None:
    """Write report.json, report.md, report.html and prompts.jsonl into ``folder``, which replaces an older audit."""
    report = {
        "command": command,
        "machine": machine(),
        "seconds": round(time.monotonic() - started, 1),
        "kind": "rollouts",
        "config": config.model_dump(mode="json"),
        "verdict": verdict(audited),
        "notes": audited.notes,
        "prompts": len(audited.groups),
        "flagged": int(audited.judged.flagged.sum()),
        "chance": _number(chance_of(int(audited.judged.flagged.sum()), len(audited.groups), audited.fpr)),
        "calibrated": audited.judged.calibrated,
        "threshold": _number(audited.judged.threshold),
        "thresholds": {name: _number(value) for name, value in audited.judged.thresholds.items()},
        "reward_range": _number(audited.table.reward_range),
    }
    sections = {
        "signals": Section("Each signal alone, and the combined score", signal_table(audited)),
        "meanings": Section("What the signals measure", _meanings(audited)),
        "prompts": Section(
            f"The {min(SHOWN, len(audited.groups))} highest scores (* is flagged), and each signal's -log10 p",
            prompt_table(audited, 60),
            refusal_plot(audited),
        ),
        "reasons": Section("Reasons", _reason_table(audited)),
    }
    if audited.ablations:
        sections["ablation"] = Section("Parts of the suspects left out", ablation_table(audited))
    with atomic_folder(folder) as place:
        write_json_lines(place / "prompts.jsonl", (record_of(audited, at) for at in audited.order))
        write_page(place, "Audit of rollouts", [*verdict(audited), *audited.notes], sections, report)


def is_rollout_audit(folder: Path) -> bool:
    """Whether a folder holds an audit of rollouts."""
    return is_file(folder / "report.json") and is_file(folder / "prompts.jsonl")


def _meanings(audited: AuditedLog) -> Table:
    return Table(["signal", "measures"], [[name, SIGNALS[name].about] for name in audited.judged.surprises])


def _reason_table(audited: AuditedLog) -> Table:
    rows = [
        [_label(audited, at, 40), reason]
        for at in audited.order[:SHOWN]
        for reason in (reasons(audited, at) or ["no signal is loud alone"])
    ]
    return Table(["prompt", "reason"], rows)


def refusal_plot(audited: AuditedLog) -> Figure:
    """Draw the share of refusals over the steps, of flagged prompts and of the others."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    flagged = audited.judged.flagged
    for name, chosen, colour in (("flagged", flagged, "#c0392b"), ("others", ~flagged, "#2c6fbb")):
        steps = np.array([s for at in np.flatnonzero(chosen) for s in audited.groups[at].steps])
        refused = np.array([r for at in np.flatnonzero(chosen) for r in audited.groups[at].refused], dtype=float)
        if not len(steps):
            continue
        edges = np.linspace(steps.min(), steps.max() + 1, min(20, len(set(steps.tolist()))) + 1)
        place = np.clip(np.digitize(steps, edges) - 1, 0, len(edges) - 2)
        used = np.unique(place)
        shares = [100 * float(refused[place == at].mean()) for at in used]
        axes.plot([(edges[at] + edges[at + 1]) / 2 for at in used], shares, "o-", ms=3, color=colour, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("refusals, %")
    axes.set_ylim(-3, 103)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _number(value: float) -> float | None:
    """A number for JSON: rounded, None if it is not finite."""
    return round(float(value), 6) if math.isfinite(value) else None
