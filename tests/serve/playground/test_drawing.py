"""The HTML of the pages: what it tells, and that no name can become markup."""

from __future__ import annotations

import re

import pytest

from skillweave.serve.playground import drawing
from skillweave.serve.playground.answering import AnswerState
from skillweave.serve.playground.figures import Figures
from skillweave.serve.playground.markdown import shown_markdown
from skillweave.serve.residency import PackStatus
from skillweave.serve.service import Resolved

EVIL = '<img src=x onerror="alert(1)">'


def status(name: str, size: int | None = 1000, level: str = "memory", **more: object) -> PackStatus:
    fields = {"pinned": False, "in_use": 0, "hits": 0, "loads": 1, "load_seconds": 0.5, "evictions": 0}
    fields |= {"error": None, "proof": None}
    return PackStatus(name=name, level=level, bytes=size, **{**fields, **more})  # type: ignore[arg-type]


def widths(html: str) -> list[float]:
    return [float(width) for width in re.findall(r"width:([\d.]+)%", html)]


@pytest.mark.parametrize(("rate", "told"), [(8.64, "8.6"), (99.9, "99.9"), (16588.3, "16,588")])
def test_a_speed_has_decimals_only_if_it_is_low(rate: float, told: str) -> None:
    assert drawing._speed(rate) == told


def test_a_route_shows_the_scores_of_the_router() -> None:
    chosen = Resolved("sort", "sort", "router", 0.9)
    html = drawing.route(AnswerState(chosen, {"sort": 0.9, "reverse": 0.07, "base": 0.03}))
    assert widths(html) == [90.0, 7.0, 3.0]
    assert html.count("sw-chosen") == 1
    assert re.findall(r">(\d+%)<", html) == ["90%", "7%", "3%"]
    many = drawing.route(AnswerState(chosen, {"sort": 0.5, **{f"p{at}": 0.05 for at in range(10)}}))
    assert "5 others" in many
    assert sum(widths(many)) == pytest.approx(100)
    assert drawing.route(AnswerState(Resolved("sort", "sort"), {})) == ""
    unsure = drawing.route(AnswerState(Resolved("base", None, "router", 0.1), {"sort": 0.6, "base": 0.4}))
    assert "not sure enough of a pack: <b>base</b> answers" in unsure


def test_bytes_in_memory_and_the_limit() -> None:
    lines = [status("a", 1000, pinned=True), status("b", 3000, in_use=2), status("c", 2000, "disk"), status("d", None)]
    html = drawing.packs(lines, 8000)
    assert "<b>4.0 kB</b> of packs in memory · the limit is 8.0 kB" in html
    memory, table = html.split("<table")
    assert widths(memory) == [37.5, 12.5]
    assert "left:100.00%" in memory
    rows = table.split("<tr")[2:]
    assert [re.search(r'title="(\w)"', row)[1] for row in rows] == ["b", "a", "c", "d"]  # type: ignore[index]
    assert "pinned" in rows[1]
    assert "sw-busy" in rows[0]
    assert "without a limit" in drawing.packs(lines, None)
    assert "no packs" in drawing.packs([], 8000)


def test_why_a_pack_failed_is_told() -> None:
    assert "damaged" in drawing.packs([status("a", None, "failed", error="the file is damaged")], None)


def test_no_text_becomes_markup() -> None:
    resolved = Resolved(EVIL, EVIL, "router", 0.5)
    state = AnswerState(resolved, {EVIL: 1.0})
    for html in (
        drawing.route(state),
        drawing.answer_figures(state),
        drawing.fault(EVIL),
        drawing.packs([status(EVIL, error=EVIL)], 10),
    ):
        assert "<img" not in html
        assert "&lt;img" in html


def test_figures() -> None:
    html = drawing.live_figures(Figures(2, 1, 12.34, 0.2))
    assert [re.sub("<.*?>", "", tile) for tile in html.split('<div class="sw-tile">')[1:]] == [
        "Running2 requests", "Waiting1 requests", "Speed12.3 tokens/s", "First token200 ms, median",
    ]  # fmt: skip
    assert "–" in drawing.live_figures(Figures(0, 0, None, None))
    assert "being loaded" in drawing.live_figures(None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, EVIL.replace("<", "&lt;")),
        ("![x](http://a/b.png)", "!\\[x](http://a/b.png)"),
        ("a & b &lt;", "a &amp; b &amp;lt;"),
        ("- *one*\n- `x < y`", "- *one*\n- `x < y`"),
        ("```html\n<b>\n```\n<i>", "```html\n<b>\n```\n&lt;i>"),
        ("```html\n<b>", "```html\n<b>"),
        ("``a ` <b>`` <c>", "``a ` <b>`` &lt;c>"),
        ("`open <b>", "`open &lt;b>"),
    ],
)
def test_tags_and_images_of_a_model_are_text(text: str, shown: str) -> None:
    assert shown_markdown(text) == shown
