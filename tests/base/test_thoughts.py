"""Thoughts are removed from an answer; text that only looks like a thought stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from skillweave.base.thoughts import KNOWN, opened_thought, strip_thoughts, template_thought_markers

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("4", "4"),
        ("  4\n", "  4\n"),
        ("<think></think>4", "4"),
        ("<think>\n\n</think>\n\n4", "4"),
        ("<think>two and two</think>\n4", "4"),
        (f"<think>I could write {CALL} now.</think>\n{CALL}", CALL),
        # the prompt opened the thought
        ("two and two\n</think>\n\n4", "4"),
        ("two and two</think>4", "4"),
        # cut off
        ("<think>two and", ""),
        ("\n <think>\ntwo and", ""),
        ("The answer is 4.\n<think>Let me check", "The answer is 4."),
        ("<think>a</think><think>b", ""),
        # several
        ("<think>a</think> 3 <think>b</think> 4", "3  4"),
        ("Sure. <think>hm</think> 4", "Sure.  4"),
        ("<think>a <think> b</think> c</think> 4", "4"),
        ("<think>a</think> b </think> 4", "4"),
        # a thought may speak of its own marks
        ("<think>I close with `</think>` then.</think>4", "4"),
        ('<think>The mark "</think>" ends it.</think>4', "4"),
        ('<think>Maybe {"a": 2}? No.</think>{"a": 1}', '{"a": 1}'),
        ('He is 5" tall </think> 4', "4"),
        # marks that are text
        ("It begins with `<think>` and ends with `</think>`.",) * 2,
        ('{"html": "<think>x</think>"}',) * 2,
        ('{"a": "\\"", "html": "<think>x</think>"}',) * 2,
        ('<tool_call>{"name": "f", "arguments": {"text": "<think>"}}</tool_call>',) * 2,
        ('```python\nre.sub(r"<think>.*?</think>", "", text)\n```\nDone.',) * 2,
        ("```python\nprint('<think>')\n```\n",) * 2,
        ("```\na\n```\nthen\n```\n<think>\n```\nand\n```\nb </think>\n```",) * 2,
        ("4<|end|>",) * 2,
        ("A call begins with <think>, but I need none.",) * 2,
        ("```\ncut off </think> 4", "4"),
        ("<think>```\ndraft</think>```\nx = 1\n```", "```\nx = 1\n```"),
        # gpt-oss, with its special tokens and without
        (
            "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
            "4",
        ),
        ("<|channel|>final<|message|>4<|return|>", "4"),
        ("<|channel|>analysis<|message|>two and", ""),
        ("analysisTwo and two.assistantfinal4", "4"),
        ("analysis of the final text", "analysis of the final text"),
    ],
)
def test_strip_thoughts(text: str, answer: str) -> None:
    assert strip_thoughts(text) == answer
    assert strip_thoughts(answer) == answer


@pytest.mark.parametrize(("opening", "closing"), KNOWN)
def test_every_known_pair(opening: str, closing: str) -> None:
    assert strip_thoughts(f"{opening}two{closing}4") == "4"
    assert strip_thoughts(f"{opening}two\nand") == ""
    if closing != "<|end|>":  # which ends turns of other models
        assert strip_thoughts(f"two{closing}4") == "4"


def test_marks_of_ones_own() -> None:
    assert strip_thoughts("((hm)) 4 <think>x</think>", [("((", "))")]) == "4 <think>x</think>"


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "a<think>",
        '"<think>',
        "`</think>",
        "```\n",
        " ```\n",
        "<think>a</think>",
        '"',
        "<|end|> ",
    ],
)
def test_hostile_texts_end(piece: str) -> None:
    text = piece * (120_000 // len(piece))
    assert len(strip_thoughts(text)) <= len(text)
    assert len(strip_thoughts(text + '"\n')) <= len(text) + 2


def test_markers_of_a_template() -> None:
    template = "{%- if '</think>' in content %}..{% endif %}"
    assert template_thought_markers(SimpleNamespace(chat_template=template)) == (("<think>", "</think>"),)
    assert template_thought_markers(SimpleNamespace(chat_template={"default": "[THINK]"})) == (("[THINK]", "[/THINK]"),)
    assert template_thought_markers(SimpleNamespace(chat_template=None)) == ()
    assert template_thought_markers(SimpleNamespace(chat_template="{{ '<|end|>' }}")) == ()  # Phi-3 ends turns with it


def test_a_thought_that_the_prompt_opened() -> None:
    assert opened_thought("<|Assistant|><think>\n") == "<think>"
    assert opened_thought("<|Assistant|>") == ""
    assert strip_thoughts(opened_thought("<|Assistant|><think>\n") + "two and") == ""
