"""The page of an unlearning: its tables, its plots, and what it says if something was not given."""

from __future__ import annotations

import copy
import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from helpers.page_text import drawn, page_text
from skillweave.files.read import read_json
from skillweave.methods.cku.report.page import (
    compressed_table,
    known_plot,
    known_table,
    plain,
    probe_plot,
    probe_table,
    refusal_table,
    short_probe_table,
    short_unlearn_table,
    task_table,
    write_unlearn_report,
)


def arm(forget: float, retain: float, refused: float) -> dict[str, Any]:
    """A reading in which every figure of a set is computed from its strength."""
    sides = {"forget": forget, "unseen": 0.25, "retain": retain, "lookalike": retain - 0.05}
    figures: dict[str, Any] = {
        f"{side}_{key}": value * factor
        for side, value in sides.items()
        for key, factor in (("strength", 1.0), ("memorised", 0.9), ("probability", 0.8), ("log_prob", -1.0))
    }
    figures |= {f"{side}_refused": refused for side in ("forget", "retain", "lookalike")}
    figures |= {"membership_loss": 0.75, "membership_min_k": 0.5, "truth_ratio": 12.34, "truth_ratios": [1.0, 2.0]}
    return {**figures, "tasks": {"sort": {"mean": retain, "low": retain - 0.1, "high": retain + 0.05, "n": 40}}}


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with everything that can be given."""
    relearnt = {"known": 1.0, "unlearnt": 0.3, "strength": 0.44, "examples": 26, "steps": 20, "gap": 0.2}
    written = {"retain_strength": 0.86, "retain_probability": 0.6, "robustness": 0.95}
    rounded = {"before_forget_strength": 0.99, "before_retain_probability": 0.7, **written}
    return {
        "base": {"ref": "models/<taught>", "fingerprint": "sha256:" + "0" * 64},
        "delta": {"folder": "runs/x/delta", "provenance": {"method": "cku", "task": "forget", "seed": 0}},
        "arms": {"before": arm(1.0, 0.9, 0.0), "after": arm(0.3, 0.88, 0.5), "reference": arm(0.28, 0.9, 0.0)},
        "forgotten": 0.972,
        "kept": 0.978,
        "forget_quality": 1.23e-5,
        "relearning": {
            "forget": {**relearnt, "reference": 0.4, "robustness": 0.857},
            "unrelated": {
                **relearnt,
                "examples": 10,
                "gap": 0.1,
                "strength": 0.37,
                "reference": 0.3,
                "robustness": 1.0,
            },
        },
        "stored": {"forget_strength": 0.31, "gap": 0.014, **written},
        "rounding": {
            "8": {"forget_strength": 0.3, "gap": 0.0, **rounded},
            "4": {"forget_strength": 0.25, "gap": -0.071, **rounded},
        },
        "zipped": [
            {"ratio": 1 / 16, "gap": None, "too_small": "the pack cannot be smaller than 5 kB", "seconds": 0.1},
            {"ratio": 1 / 8, "gap": 0.3, "forget_strength": 0.51, "pack_bytes": 24_100, **written},
        ],
        "robustness": 0.9,
        "command": "skillweave cku report -c judge.yaml",
        "machine": "Linux, 2 cores",
        "versions": {"python": "3.11"},
        "seconds": 42.0,
    }


def least(report: dict[str, Any]) -> dict[str, Any]:
    """The same report for plain texts, without anything optional, for a model that knew nothing."""
    poor = copy.deepcopy(report)
    del poor["arms"]["reference"]
    for figures in poor["arms"].values():
        for key in [key for key in figures if re.match("unseen|lookalike|truth|membership|.*refused", key)]:
            del figures[key]
        figures["tasks"] = {}
    for entry in poor["relearning"].values():
        del entry["reference"], entry["robustness"]
        entry["gap"] = None
    gone = dict.fromkeys(("forgotten", "forget_quality", "robustness", "stored"))
    return {**poor, **gone, "rounding": {}, "zipped": [], "delta": {"folder": "runs/x/delta", "provenance": {}}}


def bars(axes: Axes) -> dict[str, list[float]]:
    return {
        str(container.get_label()): [bar.get_height() for bar in container]
        for container in axes.containers
        if isinstance(container, BarContainer)
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.0, "1"), (0.63, "0.63"), (0.04567, "0.0457"), (1.23e-5, "1.2e-05"), (815.2, "815")],
)
def test_a_plain_number_is_short(value: float | None, text: str) -> None:
    assert plain(value) == text


def test_every_set_is_a_group_of_rows_with_a_column_for_each_model(report: dict[str, Any]) -> None:
    table = known_table(report)
    assert table.header == ["", "before", "after", "reference"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["to forget: extraction strength"] == ["100.0%", "30.0%", "28.0%"]
    assert rows["to retain: exact memorisation"] == ["81.0%", "79.2%", "81.0%"]
    assert rows["never taught: probability"] == ["20.0%"] * 3
    assert rows["to forget: membership by loss (AUC)"] == ["0.75"] * 3
    assert rows["to forget: truth ratio"] == ["12.3"] * 3
    assert len(rows) == 4 * 3 + 3
    assert len(known_table(least(report)).rows) == 2 * 3


def test_tasks_and_refusals_are_told_model_by_model(report: dict[str, Any]) -> None:
    assert task_table(report).rows == [["sort", "90.0 (80-95)", "88.0 (78-93)", "90.0 (80-95)", "40"]]
    assert refusal_table(report).rows[0] == ["to forget", "0.0%", "50.0%", "0.0%"]
    assert [row[0] for row in refusal_table(report).rows] == ["to forget", "to retain", "look-alikes"]


def test_every_probe_has_a_row_and_what_was_not_given_is_a_dash(report: dict[str, Any]) -> None:
    assert probe_table(report).rows == [
        ["26 facts relearnt", "100.0%", "30.0%", "44.0%", "20.0%", "40.0%", "0.857"],
        ["10 unrelated examples", "100.0%", "30.0%", "37.0%", "10.0%", "30.0%", "1"],
        ["the base's dtype", "100.0%", "30.0%", "31.0%", "1.4%", "-", "0.95"],
        ["8 bits", "100.0%", "30.0%", "30.0%", "0.0%", "-", "0.95"],
        ["4 bits", "100.0%", "30.0%", "25.0%", "-7.1%", "-", "0.95"],
        ["zipped 1/16", "100.0%", "30.0%", "-", "-", "-", "-"],
        ["zipped 1/8", "100.0%", "30.0%", "51.0%", "30.0%", "-", "0.95"],
    ]
    assert [row[4:] for row in probe_table(least(report)).rows] == [["-", "-", "-"]] * 2
    rows = {row[0]: row[1:] for row in compressed_table(report).rows}
    assert rows["as trained"] == ["100.0%", "30.0%", "72.0%", "70.4%", "-"]
    assert rows["4 bits"] == ["99.0%", "25.0%", "70.0%", "60.0%", "-"]
    assert rows["zipped 1/8"] == ["-", "51.0%", "-", "60.0%", "24.1 kB"]
    assert rows["zipped 1/16"] == ["-"] * 5


def test_the_short_tables_fit_a_terminal_and_cut_nothing(report: dict[str, Any]) -> None:
    tables = [short_unlearn_table(report), short_probe_table(report)]
    for table in tables:
        shown = drawn(table)
        assert max(map(len, shown.splitlines())) <= 80
        assert "…" not in shown
        for cell in (cell for row in table.rows for cell in row):
            assert cell in shown
    rows = {row[0]: row[1:] for row in tables[0].rows}
    assert rows["look-alikes refused"] == ["0.0%", "50.0%", "0.0%"]
    assert rows["sort"] == ["90.0%", "88.0%", "90.0%"]
    assert tables[1].rows[0] == ["26 facts relearnt", "100.0%", "30.0%", "44.0%", "20.0%"]


def test_the_bars_stand_where_the_figures_are(report: dict[str, Any]) -> None:
    strength, probability = known_plot(report).axes
    assert bars(strength)["after"] == pytest.approx([30.0, 25.0, 88.0, 83.0])
    assert bars(probability)["reference"] == pytest.approx([22.4, 20.0, 72.0, 68.0])
    probes = bars(probe_plot(report).axes[0])
    assert probes["after the probe"] == pytest.approx([44, 37, 31, 30, 25, 51])  # none for the zip that was too small
    assert probes["reference after it"] == pytest.approx([40, 30])
    assert list(bars(probe_plot(least(report)).axes[0])) == ["before", "after", "after the probe"]


def test_the_page_is_written_whole(report: dict[str, Any], tmp_path: Path) -> None:
    write_unlearn_report(report, tmp_path)
    assert read_json(tmp_path / "report.json") == report
    written = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    plots = [f"plots/{name}.svg" for name in ("known", "probes", "refusals", "tasks")]
    assert written == [*plots, "report.html", "report.json", "report.md"]
    for plot in plots:
        assert ElementTree.parse(tmp_path / plot).getroot().tag.endswith("svg")
    markdown, shown = html.unescape((tmp_path / "report.md").read_text()), page_text(tmp_path / "report.html")
    for text in (
        "forget: report of the unlearning", "models/<taught>", "Forgotten 97.2%", "kept 97.8%", "1.2e-05",
        "brings back the most: zipped 1/8, 30.0%", "zipped 1/16: no pack can be that small. the pack cannot be smaller",
        "100% would be the reference's",
    ):  # fmt: skip
        assert text in markdown
        assert text in shown
    assert re.findall(r"\]\(([^)]+)\)", markdown) == [
        f"plots/{n}.svg" for n in ("known", "tasks", "refusals", "probes")
    ]


def test_a_page_without_what_was_not_given_says_so(report: dict[str, Any], tmp_path: Path) -> None:
    write_unlearn_report(least(report), tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    page_text(tmp_path / "report.html")
    assert re.findall("^## (.*)$", markdown, re.MULTILINE) == [
        "What is forgotten, and what is kept",
        "What the probes bring back",
    ]
    assert markdown.startswith("# runs/x/delta: report of the unlearning")
    assert "The base did not know the forget set better than facts that were never taught" in markdown
    assert "No reference was given" in markdown
    assert "None" not in markdown


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_unlearn_report(copy.deepcopy(report), tmp_path / name)
    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file.name
