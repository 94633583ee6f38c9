"""The tree of a group: every text, its writer and its reward, whatever markup the text contains."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from helpers.agents import group_of, settings
from helpers.micro import micro_tokenizer
from skillweave.methods.e3tir.group import Group
from skillweave.methods.e3tir.watch import group_tree

TOKENIZER = micro_tokenizer()


def drawn(group: Group, text=TOKENIZER.decode) -> str:
    page = Console(file=io.StringIO(), width=300, record=True)
    page.print(group_tree(group, text))
    return page.export_text()


def say(group: Group, *texts: str) -> None:
    """Replace the tokens of each member by a text of the same length."""
    for member, said in zip(group.members, texts, strict=True):
        assert len(member.episode.ids) == len(said)
        member.episode.ids = TOKENIZER(said)["input_ids"]


@pytest.fixture
def group():
    group = group_of("who?", settings(), ("pppttpp", 1.0), ("ppp", -0.2), ("eeettpp", 0.0), ("eeettpp", 1.5))
    say(group, "ask2 ok", "no!", "asks2no", "asks2go")
    return group


def test_every_conversation_is_drawn_once_below_where_it_began(group):
    lines = [line for line in drawn(group).splitlines() if line.strip()]
    texts = [line.strip("│├└─ ") for line in lines]
    a = [member.advantage for member in group.members]
    assert texts == [
        "who?  answer: ?",
        "self",
        f"+1.00 (A {a[0]:+.2f})  ask 2 ok",
        f"-0.20 (A {a[1]:+.2f})  no!",
        "expert (joined)",
        "ask",
        f"+0.00 (A {a[2]:+.2f})  s2 no",
        f"+1.50 (A {a[3]:+.2f})  s2 go",
    ]


def test_a_pool_that_stays_out_is_told(group):
    for member in group.pool(True):
        member.parts = {"answer": 0.0}
    group.set_advantages(settings())
    assert "expert (not joined: no better than the policy's own)" in drawn(group)


def test_without_an_expert_there_is_no_such_branch():
    assert "expert" not in drawn(group_of("a", settings(), ("pp", 1.0), ("p", 0.0)))


def test_each_anchor_has_its_own_branches():
    group = group_of("a", settings(), ("ppp", 0.0), ("eppp", 1.0), ("eepp", 1.0), ("eepp", 0.5))
    say(group, "xyz", "abcd", "abef", "abgh")
    indents = {line.strip("│├└─ ").split("  ")[-1]: len(line) - len(line.lstrip("│├└─ "))
               for line in drawn(group).splitlines()}  # fmt: skip
    assert indents["a"] == indents["ab"] < indents["bcd"] == indents["ef"] == indents["gh"]


def test_the_whole_trace_in_a_group_is_drawn_with_nothing_after_it():
    group = group_of("a", settings(expert={"branch": "whole"}), ("pp", 0.0), ("eee", 1.0), ("eee", 1.0))
    say(group, "xy", "all", "all")
    assert drawn(group).count("all") == 1
    assert drawn(group).count("+1.00") == 2


@pytest.mark.parametrize(
    "marked", ["[bold]x[/bold]", "[/]", "[/red]", "[1, 2]", "x\\", "[dim]", "\\[x]", "a\\[ 1]", ":smile:"]
)
def test_marks_in_a_text_are_shown_as_they_are(group, marked):
    group.entry = dataclasses.replace(group.entry, prompt=f"say {marked}", answer=marked)
    shown = drawn(group, lambda ids: marked)
    assert f"say {marked}  answer: {marked}" in shown
    assert shown.count(marked) >= 8


def test_a_text_cannot_steer_the_terminal(group):
    evil = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\u202ee\ud800f"
    group.entry = dataclasses.replace(group.entry, prompt=evil, answer=evil)
    shown = drawn(group, lambda ids: evil)
    harmless = r"a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\u202ee\ud800f"
    assert f"{harmless}  answer: {harmless}" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_long_text_is_cut_and_stays_on_its_line(group):
    shown = drawn(group, lambda ids: "ab\n" * 1000)
    assert "ab ab" in shown.replace("\n", "")
    assert "..." in shown
    assert len(shown) < 8000
