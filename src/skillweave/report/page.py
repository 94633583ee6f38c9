"""Write a report as files: ``report.json``, ``report.md``, ``report.html`` and ``plots/*.svg``."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from skillweave.artefact import atomic_file, write_json, write_text
from skillweave.report.escape import markdown_text
from skillweave.report.plots import svg_text
from skillweave.report.table import Table
from skillweave.terminal import harmless
from skillweave.units import human_seconds

PAGE_PARTS = ("report.json", "report.md", "report.html", "plots/*.svg")
"""Paths of the files that :func:`write_page` writes."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; margin: 1rem 0; } td { white-space: nowrap; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
th:not(:first-child), td:not(:first-child) { text-align: right; } code { background: #f3f3f3; padding: .1rem .3rem; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } footer { color: #666; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Section:
    """A table with a title and, optionally, a plot of the same figures."""

    title: str
    table: Table
    plot: Figure | None = None


def write_page(
    folder: Path, title: str, notes: Sequence[str], sections: Mapping[str, Section], report: dict[str, Any]
) -> None:
    """Write a report into ``folder``.

    - ``sections``: in order; the plot of a section is written to ``plots/KEY.svg``
    - ``report``: the content of ``report.json``; its ``command``, ``machine`` and ``seconds`` are quoted in the footer
    """
    drawn = {name: svg_text(section.plot) for name, section in sections.items() if section.plot is not None}
    for name, svg in drawn.items():
        with atomic_file(folder / "plots" / f"{name}.svg") as file:
            file.write_text(svg, encoding="utf-8")
    markdown = [f"# {markdown_text(title)}", "", *(f"- {markdown_text(note)}" for note in notes)]
    body = []
    for name, section in sections.items():
        markdown += ["", f"## {markdown_text(section.title)}", "", section.table.markdown()]
        body += [f"<h2>{html.escape(section.title)}</h2>", section.table.html()]
        if name in drawn:
            markdown += ["", f"![{markdown_text(section.title)}](plots/{name}.svg)"]
            body.append(f"<figure>{drawn[name]}</figure>")
    command = harmless(report["command"]).replace("`", "'")
    footer = f"Made by `{command}` on {report['machine']} in {human_seconds(report['seconds'])}."
    write_text(folder / "report.md", "\n".join([*markdown, "", footer, ""]))
    write_text(folder / "report.html", html_page(title, notes, body, footer))
    write_json(folder / "report.json", report)


def html_page(title: str, notes: Sequence[str], body: Sequence[str], footer: str, style: str = "") -> str:
    """Return an HTML page of one file, without scripts and without anything from the network.

    ``title``, ``notes`` and ``footer`` are texts, which are escaped here; ``body`` and ``style`` are HTML and CSS.
    """
    title, footer = (html.escape(harmless(text)) for text in (title, footer))
    listed = "\n".join(f"<li>{html.escape(harmless(note))}</li>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}{style}</style></head>\n<body>\n<h1>{title}</h1><ul>\n{listed}\n</ul>\n"
        f"{chr(10).join(body)}\n<footer>{footer}</footer>\n</body></html>\n"
    )
