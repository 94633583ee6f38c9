"""Write the report of an audit of data: report.json for programs, report.html for people, tables for the terminal."""

from __future__ import annotations

import html
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json, write_text
from skillweave.audit.data.result import DataAudit, Suspect, shown_spans
from skillweave.audit.data.score import SIGNALS
from skillweave.files.read import is_file
from skillweave.report.machine import machine
from skillweave.report.page import html_page
from skillweave.report.table import Table
from skillweave.terminal import harmless, one_line
from skillweave.units import human_seconds

PARTS = ("report.json", "report.html", "records.jsonl", "malformed.jsonl")
"""Names of the files of an audit of data."""
_SHORT = 10
_MOST_GROUPS = 10
_STRONG = frozenset({"contrast", "stances", "refused_elsewhere", "shared_block", "odd_part"})
"""Signals that mark a part as the suspicious one; the others mark what the part consists of."""
_STYLE = """
td { white-space: normal; }
article { border: 1px solid #ccc; border-radius: 6px; margin: 1.2rem 0; padding: .6rem 1rem; }
article header { display: flex; gap: 1rem; flex-wrap: wrap; align-items: baseline; }
article header b { color: #a40000; } article.below header b { color: #555; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f7f7; padding: .7rem; font-size: .88rem; }
mark { background: #fff1b8; } mark.strong { background: #ffc9c2; }
ul.reasons { margin: .3rem 0; padding-left: 1.2rem; font-size: .9rem; }
.key { font-size: .85rem; color: #444; }
"""


def write_report(folder: Path, audit: DataAudit) -> None:
    """Write report.json and report.html into ``folder``."""
    write_json(folder / "report.json", report(audit))
    write_text(folder / "report.html", page(audit))


def is_data_audit(folder: Path) -> bool:
    """Whether a folder holds an audit of data."""
    return is_file(folder / "report.json") and is_file(folder / "records.jsonl")


def report(audit: DataAudit) -> dict[str, Any]:
    """Return the content of report.json."""
    return {
        "schema_version": 1,
        "config": audit.config.model_dump(),
        "summary": [audit.verdict(), *audit.notes()],
        "records": audit.records,
        "flagged": audit.flagged,
        "malformed": audit.malformed,
        "first_malformed": [asdict(bad) for bad in audit.first_malformed],
        "without_answer": audit.without_answer,
        "cut": audit.cut,
        "with_other_parts": audit.with_other_parts,
        "fpr": audit.config.fpr,
        "threshold": audit.threshold,
        "reference": {
            "name": audit.reference.name,
            "made_by": audit.reference.made_by,
            "families": {name: len(scores) for name, scores in audit.reference.combined.items()},
        },
        "weights": dict(zip(audit.reference.combination.signals, audit.reference.combination.weights, strict=True)),
        "signals": {
            name: {"says": says, "over": int(over), "judged": int(said)}
            for (name, says), over, said in zip(SIGNALS.items(), audit.over, audit.said, strict=True)
        },
        "sources": {
            name: {"records": n, "flagged": audit.flagged_sources[name]} for name, n in audit.sources.most_common(100)
        },
        "groups": [
            {"records": len(group.members), "lines": [_place(audit.suspects[at]) for at in group.members[:20]]}
            for group in audit.groups
        ],
        "seconds": round(audit.seconds, 1),
        "machine": machine(),
    }


def signal_table(audit: DataAudit) -> Table:
    """Return each signal with its weight and how many records are over its own threshold."""
    weights = dict(zip(audit.reference.combination.signals, audit.reference.combination.weights, strict=True))
    rows = [
        [
            name,
            says,
            f"{weights.get(name, 0):.2f}",
            f"{over:,}",
            f"{over / audit.records:.2%}" if said else "says nothing",
        ]
        for (name, says), over, said in zip(SIGNALS.items(), audit.over, audit.said, strict=True)
    ]
    rows.append(["combined", "all signals", "", f"{audit.flagged:,}", f"{audit.flagged / audit.records:.2%}"])
    return Table(["signal", "says", "weight", "records over", "share"], rows)


def suspect_table(audit: DataAudit) -> Table:
    """Return the flagged records with the highest scores, for the terminal."""
    flagged = [suspect for suspect in audit.suspects[:_SHORT] if suspect.line["flagged"]]
    rows = [
        [
            _place(suspect),
            f"{suspect.line['score']:.2f}",
            ", ".join(reason["signal"] for reason in suspect.line["reasons"][:3]),
        ]
        for suspect in flagged
    ]
    return Table(["record", "score", "strongest signals"], rows)


def source_table(audit: DataAudit) -> Table:
    """Return the sources with the highest share of flagged records."""
    shares = sorted(audit.sources, key=lambda name: -audit.flagged_sources[name] / audit.sources[name])
    rows = [
        [one_line(name, 40), f"{audit.sources[name]:,}", f"{audit.flagged_sources[name]:,}",
         f"{audit.flagged_sources[name] / audit.sources[name]:.1%}"]
        for name in shares[:_SHORT]
    ]  # fmt: skip
    return Table(["source", "records", "flagged", "share"], rows)


def page(audit: DataAudit) -> str:
    """Return report.html: one file, without scripts and without anything from the network."""
    body = ["<h2>Signals</h2>", signal_table(audit).html()]
    body.append(
        f'<p class="key">A record is "over" if its own p-value for that signal is at most {audit.config.fpr:g}. The '
        "weights are those of the combined score.</p>"
    )
    if audit.sources:
        body += ["<h2>Sources</h2>", source_table(audit).html()]
    if audit.groups:
        body += ["<h2>Flagged records that share most of their text</h2>", _group_table(audit).html()]
    if audit.first_malformed:
        bad = [[f"{m.file}, line {m.line}", one_line(m.reason)] for m in audit.first_malformed]
        body += ["<h2>Records that could not be read</h2>", Table(["place", "reason"], bad).html()]
    shown = audit.suspects[: audit.config.shown]
    body.append(f"<h2>The {len(shown)} most suspicious records</h2>")
    body.append(
        '<p class="key"><mark class="strong">Red</mark>: what a signal names as the suspicious part. <mark>Yellow'
        "</mark>: requests, rules and demonstrations. Point at a mark to see its signals.</p>"
    )
    body += [_article(suspect) for suspect in shown]
    made = f"Made by skillweave audit data in {human_seconds(audit.seconds)} on {machine()}."
    return html_page(f"Audit of {audit.config.data}", [audit.verdict(), *audit.notes()], body, made, _STYLE)


def _article(suspect: Suspect) -> str:
    line = suspect.line
    text = "".join(
        _marked(suspect.prompt[start:end], marks) for (start, end), marks in shown_spans(line, len(suspect.prompt))
    )
    reasons = "".join(
        f"<li>{html.escape(reason['says'])} ({reason['signal']}: {line['signals'][reason['signal']]}, "
        f"p = {reason['p']:.2g})</li>"
        for reason in line["reasons"]
    )
    facts = [f"id {line['id']}"] if line["id"] is not None else []
    facts += [f"source {line['source']}"] if line["source"] is not None else []
    verdict = "flagged" if line["flagged"] else "below the threshold"
    return (
        f"<article{'' if line['flagged'] else ' class=below'}><header><b>{verdict}</b> "
        f"<span>{html.escape(harmless(_place(suspect)))}</span> "
        f"<span>score {line['score']:.2f}, p = {line['p']:.2g}</span> "
        f"<span>{html.escape(one_line(', '.join(facts)))}</span></header>\n<pre>{text}</pre>\n"
        f"<p>Gold answer: <code>{html.escape(one_line(suspect.answer) or '(none)')}</code></p>"
        f'<ul class="reasons">{reasons}</ul></article>'
    )


def _marked(text: str, marks: list[str]) -> str:
    shown = html.escape(harmless(text))
    if not marks:
        return shown
    kind = ' class="strong"' if _STRONG & set(marks) else ""
    return f'<mark{kind} title="{html.escape(", ".join(marks))}">{shown}</mark>'


def _group_table(audit: DataAudit) -> Table:
    rows = [
        [one_line(audit.suspects[group.members[0]].prompt, 90), f"{len(group.members):,}"]
        for group in audit.groups[:_MOST_GROUPS]
    ]
    return Table(["the prompt with the highest score begins", "records"], rows)


def _place(suspect: Suspect) -> str:
    return f"{Path(suspect.line['file']).name}, line {suspect.line['line']}"
