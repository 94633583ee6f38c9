"""Texts of strangers in a report: names, answers and commands never become marks of its format."""

from __future__ import annotations

from skillweave.terminal import harmless

_LONGEST_LABEL = 40


def markdown_text(text: str) -> str:
    """The text on one line of Markdown: no link, image, HTML, code or cell begins or ends in it."""
    text = harmless(" ".join(text.split())).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "|[]`" else character for character in text)


def label_text(text: str) -> str:
    """The text as the label of a plot: on one line, and not longer than a label can be."""
    text = harmless(" ".join(text.split()))
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
