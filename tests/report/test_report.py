"""The figures of a build as people see them: units, tables, plots and the report's files."""

from __future__ import annotations

import copy
import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import BarContainer

from helpers.page_text import drawn, page_text
from skillweave.files.read import read_json
from skillweave.pipeline.plots import skills_plot
from skillweave.pipeline.report import short_skill_table, skill_table, write_build_report
from skillweave.pipeline.speed import speed_note
from skillweave.report import Table, machine, versions
from skillweave.units import human_bytes, human_seconds


def skill(base: float, specialist: float | None, pack: float, delta_bytes: int | None = 200_000_000) -> dict[str, Any]:
    arms = {"base": base, "specialist": specialist, "pack": pack, "routed": pack}
    gain = None if specialist is None or specialist <= base else (pack - base) / (specialist - base)
    return {
        **arms,
        "gain_kept": gain,
        "pack_bytes": 8_400_000,
        "delta_bytes": delta_bytes,
        "intervals": {
            arm: [max(0.0, mean - 0.08), min(1.0, mean + 0.08)] for arm, mean in arms.items() if mean is not None
        },
        "prompts": 128,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "name": "demo <&>",
        "base": {"ref": "bundled:smollm2", "fingerprint": "sha256:" + "0" * 64},
        "dtype": "bfloat16",
        "skills": {
            "json_calls": skill(0.0, 1.0, 0.98),
            "reverse_words": skill(0.25, 0.75, 0.5),
            "ready-made": skill(0.1, None, 0.9, None),
            "no_gain": skill(0.5, 0.5, 0.4),
        },
        "memory": {"base_bytes": 269_000_000, "weave_bytes": 300_000_000, "separate_bytes": 1_076_000_000},
        "speed": {"prompts": 16, "new_tokens": 16, "seconds": {"weave": [2.0, 2.5], "separate": [4.0, 4.0]}},
        "router": {
            "accuracy": 0.97,
            "abstained": 0.02,
            "confusion": {
                "rows": ["json_calls", "reverse_words", "ready-made", "no_gain", "(anything else)"],
                "columns": ["json_calls", "reverse_words", "ready-made", "no_gain", "base"],
                "counts": [[128, 0, 0, 0, 0], [0, 120, 0, 0, 8], [0] * 5, [1, 1, 1, 1, 1], [0, 0, 0, 0, 64]],
            },
        },
        "command": "skillweave build '<odd>.yaml' -o runs/demo",
        "machine": "Linux, 2 cores",
        "versions": {"python": "3.11"},
        "seconds": 754.2,
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (8_400_000, "8.4 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (999_999_999, "1.00 GB"),
        (269e9, "269.00 GB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (4800, "1 h 20 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_a_table_says_the_same_three_times() -> None:
    table = Table(["name", "value"], [["a|b", "1"], ["<x>", "[bold]22[/bold]"]])
    assert table.markdown() == "| name | value |\n| --- | ---: |\n| a\\|b | 1 |\n| &lt;x> | \\[bold\\]22\\[/bold\\] |"
    cells = [element.text for element in ElementTree.fromstring(table.html()).iter() if element.tag in ("th", "td")]
    assert cells == ["name", "value", "a|b", "1", "<x>", "[bold]22[/bold]"]
    assert drawn(table).split()[:2] == ["name", "value"]
    assert "[bold]22[/bold]" in drawn(table)
    assert Table(["only"], []).markdown() == "| only |\n| --- |"


def test_the_skill_table_has_every_figure_with_its_interval(report: dict[str, Any]) -> None:
    rows = {row[0]: row for row in skill_table(report).rows}
    assert rows["reverse_words"][1:] == [
        "25.0 (17-33)", "75.0 (67-83)", "50.0 (42-58)", "50.0 (42-58)", "50.0%", "8.4 MB (1/23.8)", "200.0 MB",
    ]  # fmt: skip
    assert rows["ready-made"][2] == "-"
    assert rows["ready-made"][5:] == ["-", "8.4 MB", "-"]
    assert rows["no_gain"][5] == "-"


def test_the_short_table_fits_a_terminal_and_cuts_nothing(report: dict[str, Any]) -> None:
    report["skills"]["fourteen_marks"] = skill(1.0, 1.0, 1.0)
    report["skills"]["json_calls"]["pack_bytes"] = 134_500_000
    shown = drawn(short_skill_table(report))
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    table = short_skill_table(report)
    for cell in (*table.header, *(cell for row in table.rows for cell in row)):
        for word in cell.split():
            assert word in shown
    rows = {row[0]: row for row in table.rows}
    assert rows["reverse_words"] == ["reverse_words", "25.0", "75.0", "50.0", "50.0", "50.0", "8.4 MB", "1/23.8"]
    assert rows["ready-made"][2] == rows["ready-made"][5] == rows["ready-made"][7] == "-"
    long = "abcdefghij" * 3  # goes on in a second line, whole
    folded = drawn(short_skill_table({"skills": {long: skill(0.5, 0.5, 0.5)}}))
    assert "".join(line.split(" ")[0] for line in folded.splitlines()[3:]) == long


def test_the_report_is_written_whole(report: dict[str, Any], tmp_path: Path) -> None:
    write_build_report(report, tmp_path)
    assert read_json(tmp_path / "report.json") == report
    written = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    plots = ["plots/memory.svg", "plots/router.svg", "plots/skills.svg"]
    assert written == [*plots, "report.html", "report.json", "report.md"]
    for plot in plots:
        assert ElementTree.parse(tmp_path / plot).getroot().tag.endswith("svg")
    markdown = html.unescape((tmp_path / "report.md").read_text())
    shown = page_text(tmp_path / "report.html")
    for text in ("demo <&>", "97.0%", "1.12x", "12 min 34 s", "<odd>.yaml", "25.0 (17-33)", "(anything else)"):
        assert text in markdown
        assert text in shown
    for link in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (tmp_path / link).is_file()


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_build_report(copy.deepcopy(report), tmp_path / name)
    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file.name


def test_the_bars_stand_where_the_scores_are(report: dict[str, Any]) -> None:
    axes = skills_plot(report["skills"]).axes[0]
    arms = {bars.get_label(): list(bars) for bars in axes.containers if isinstance(bars, BarContainer)}
    heights = {arm: [bar.get_height() for bar in bars] for arm, bars in arms.items()}
    assert heights["base"] == pytest.approx([0.0, 25.0, 10.0, 50.0])
    assert heights["specialist"] == pytest.approx([100.0, 75.0, 50.0])  # the ready pack has none
    places = [bar.get_x() for bar in arms["specialist"]]
    assert [places[1] - places[0], places[2] - places[1]] == pytest.approx([1, 2])  # and nothing stands in its place


def test_an_interval_that_rounding_puts_beside_the_mean_isdrawn() -> None:
    odd = skill(0.1, 0.3, 0.2)
    odd["intervals"]["base"] = [0.10000000000000002, 0.09999999999999999]
    assert skills_plot({"odd": odd}).axes


def test_machine_and_versions_are_for_the_record() -> None:
    assert re.search(r"\d+ cores, \d+ GiB memory", machine())
    found = versions()
    assert found["skillweave"] != "not installed"
    assert re.match(r"\d+\.\d+", found["torch"])


def test_the_speed_is_the_median_of_ratios_of_each_turn(report: dict[str, Any]) -> None:
    assert speed_note(report["speed"], 4) == (
        "16 prompts in one batch: 114 tokens/s, 1.80x the speed of 4 separate models one after another (1.60x to 2.00x "
        "in 2 turns)."
    )
    assert "the speed of a separate model (" in speed_note(report["speed"], 1)
