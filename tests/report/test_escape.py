"""Names of strangers in reports: a plot is drawn, and no mark of Markdown or HTML begins in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from helpers.page_text import page_text
from skillweave.pipeline.plots import confusion_plot, skills_plot
from skillweave.report import Table, svg_text
from skillweave.report.escape import label_text, markdown_text
from skillweave.report.page import Section, write_page

NAMES = [
    "$x_1$", "$\\frac{1}{$", "$$", "a_b^c", "\\", "%s {0}", "x" * 3000, "", " ", "😀👨‍👩‍👧", "\x1b]0;owned\x07", "a\nb",
    "<script>alert(1)</script>", "-->", "]]>", "&amp;", "\u202eabc", "éàü 中文",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[name[:12].encode("ascii", "backslashreplace").decode() for name in NAMES])
def test_any_name_can_be_drawn(name: str) -> None:
    skill = dict.fromkeys(("base", "specialist", "pack", "routed"), 0.5)
    skill["intervals"] = {arm: [0.4, 0.6] for arm in ("base", "specialist", "pack", "routed")}  # type: ignore[assignment]
    for figure in (skills_plot({name: skill, "other": skill}), confusion_plot([name], [name, "base"], [[3, 1]])):
        text = svg_text(figure)
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "<script" not in text


def test_logarithmic_axes_have_numbers_and_no_formulas() -> None:
    figure = Figure(figsize=(16, 4))
    wide, narrow, signed = figure.subplots(1, 3)
    wide.plot([0.01, 100], [1, 2])
    wide.set_xscale("log")
    narrow.plot([0.4, 4], [1, 2])
    narrow.set_xscale("log")
    signed.plot([-10, 10], [1, 2])
    signed.set_xscale("symlog", linthresh=1)
    text = svg_text(figure)
    assert "mathdefault" not in text
    shown = [[label.get_text() for label in axes.get_xticklabels()] for axes in (wide, narrow, signed)]
    assert {"0.1", "1", "10"} <= set(shown[0])
    assert {"-10", "-1", "0", "1", "10"} <= set(shown[2])
    assert {"0.5", "2"} <= {label.get_text() for label in narrow.get_xticklabels(minor=True)}
    assert not any(label.get_text() for label in wide.get_xticklabels(minor=True))


def test_a_label_is_short_and_on_one_line() -> None:
    assert label_text("a\n b") == "a b"
    assert label_text("x" * 100) == "x" * 39 + "…"
    assert label_text("\x1b[31m") == r"\x1b[31m"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("json_calls", "json_calls"),
        ("a|b", "a\\|b"),
        ("![x](http://y)", "!\\[x\\](http://y)"),
        ("<img src=x>", "&lt;img src=x>"),
        ("a\n# b", "a # b"),
        ("`x`", "\\`x\\`"),
        ("\x1b]0;x\x07", "\\\\x1b\\]0;x\\\\x07"),
    ],
)
def test_a_text_is_no_mark_of_markdown(text: str, written: str) -> None:
    assert markdown_text(text) == written


def test_a_page_says_what_strangers_wrote(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>`x`[a](b)"
    table = Table(["name", evil], [[evil, "1"]])
    report = {"command": f"skillweave build '{evil}'", "machine": "here", "seconds": 1.0}
    write_page(tmp_path, evil, [evil], {"one": Section(evil, table)}, report)
    assert page_text(tmp_path / "report.html").count(evil) == 6  # title twice, note, section, two cells
    markdown = (tmp_path / "report.md").read_text()
    made = markdown.rpartition("Made by")[2]
    assert "<script" not in markdown.removesuffix(made)
    assert "](b)" not in markdown.replace("\\](b)", "").removesuffix(made)
    assert made.count("`") == 2
