"""Write the page of a run. Its texts come from models and files of strangers, so nothing in them may act as markup."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from skillweave.artefact import write_text
from skillweave.progress import share_of
from skillweave.reason.page.drawing import ENDED_WORDS, Cutter, drawn_tree, pairs_solved, table_row
from skillweave.reason.trace import SearchTrace
from skillweave.terminal import harmless

MOST_TREES = 200
"""The page has the trees of so many problems; the table has all problems."""
MOST_TREE_CHARACTERS = 20_000_000
"""No further tree is added to a page whose trees have so many characters."""


@dataclass(frozen=True)
class _Figure:
    name: str
    value: str
    meaning: str
    alarm: bool = False


def write_page(path: str | Path, title: str, facts: Mapping[str, str], traces: Sequence[SearchTrace]) -> None:
    """Write one HTML file about a run of many problems. It needs no network and no other file.

    - ``facts``: what the run was, for the top of the page: method, budget, seed, model
    - ``traces``: one for each problem; the page numbers them from 1, and ``#problem=3&node=12`` shows that node

    Long texts are cut, and the trees after the first :data:`MOST_TREES` are left out; the page says so.
    """
    cutter = Cutter()
    trees: list[dict[str, Any]] = []
    characters = 0
    for trace in traces[:MOST_TREES]:
        tree = drawn_tree(trace, cutter)
        text = _json_for_html(tree)
        characters += len(text)
        if trees and characters > MOST_TREE_CHARACTERS:
            break
        trees.append({"data": tree, "json": text})
    rows = [
        table_row(number, trace, cutter, drawn=number <= len(trees)) for number, trace in enumerate(traces, start=1)
    ]
    style, script = _beside("page.css"), _beside("page.js")
    page = _template().render(
        title=harmless(title),
        facts={harmless(name): harmless(value) for name, value in facts.items()},
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        figures=_figures(traces),
        notes=_notes(traces, len(trees), cutter),
        rows=rows,
        trees=trees,
        families=sorted({row.family for row in rows if row.family}),
        endings={key: words for key, words in ENDED_WORDS.items() if any(row.ended == key for row in rows)},
    )
    write_text(path, page)


def _figures(traces: Sequence[SearchTrace]) -> list[_Figure]:
    """The main numbers of the run, each with what it means."""
    count = len(traces)
    right = sum(trace.task == 1 for trace in traces)
    solved = sum(_solved(trace) for trace in traces)
    calls, tokens = sum(trace.calls for trace in traces), sum(trace.tokens for trace in traces)
    unfinished = sum(trace.ended == "model" for trace in traces)

    def mean(total: float) -> float:
        return total / max(1, count)

    return [
        _Figure(
            "Raw accuracy",
            f"{mean(sum(trace.raw for trace in traces)):.1%}",
            "share of test pairs that are right, mean over the problems",
        ),
        _Figure(
            "Task accuracy",
            f"{mean(sum(trace.task for trace in traces)):.1%}",
            f"{right:,} of {count:,} problems have every test pair right",
        ),
        _Figure(
            "Solved in training",
            f"{mean(solved):.1%}",
            f"{solved:,} of {count:,} problems have a program that gives every training output",
        ),
        _Figure("Calls", f"{calls:,}", f"{mean(calls):,.1f} model calls for each problem"),
        _Figure("Tokens", f"{tokens:,}", f"{mean(tokens):,.0f} for each problem"),
        _Figure(
            "Unfinished",
            f"{unfinished:,}",
            "searches that lost the model; the other numbers include them",
            alarm=unfinished > 0,
        ),
    ]


def _notes(traces: Sequence[SearchTrace], trees: int, cutter: Cutter) -> list[str]:
    """Sentences about what went wrong, what was left out and what was cut."""
    count = len(traces)
    if not count:
        return ["The run has no trace of any search yet."]
    ended = Counter[str](trace.ended for trace in traces)
    endings = ", ".join(f"{ended[key]:,} {words}" for key, words in ENDED_WORDS.items() if ended[key])
    notes = [f"How the searches ended: {endings}."]
    ungraded = sum(not trace.tests for trace in traces)
    if ungraded:
        notes.append(f"{share_of(ungraded, count, 'problems')} have no graded test pair and count as wrong.")
    overfit = sum(_solved(trace) and trace.task < 1 for trace in traces)
    if overfit:
        solved = sum(_solved(trace) for trace in traces)
        notes.append(
            f"{share_of(overfit, solved, 'problems')} that are solved on their training pairs fail a test pair."
        )
    made = [[node.state for node in trace.nodes if node.action in ("propose", "refine")] for trace in traces]
    empty = sum(set(states) == {"failed"} for states in made)
    if empty:
        notes.append(f"{share_of(empty, count, 'searches')} failed: none of their answers held a readable program.")
    agents = [counts for trace in traces for counts in trace.agents.values()]
    answers = sum(counts.calls for counts in agents)
    for number, what in (
        (sum(counts.failed for counts in agents), "could not be read, even after a repair"),
        (sum(counts.repaired for counts in agents), "could be read after one repair"),
        (sum(counts.cut_off for counts in agents), "were cut off at the token limit"),
    ):
        if number:
            notes.append(f"{share_of(number, answers, 'agent answers')} {what}.")
    if trees < count:
        notes.append(
            f"The page has the trees of the first {share_of(trees, count, 'problems')}; the table has all problems, "
            "and the run's folder has all traces."
        )
    if (cut := cutter.note()) is not None:
        notes.append(cut)
    return notes


def _solved(trace: SearchTrace) -> bool:
    return bool(trace.pairs) and pairs_solved(trace.nodes) == len(trace.pairs)


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style and this script, and nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )


def _json_for_html(value: Any) -> Markup:
    """JSON that can stand in a script element: no character of it begins a tag, a comment or an entity."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_beside("page.jinja"))


def _beside(name: str) -> str:
    return importlib.resources.files("skillweave.reason.page").joinpath(name).read_text(encoding="utf-8")
