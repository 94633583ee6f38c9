"""Escape untrusted texts in a report (names, answers, commands), so that they never act as its markup."""

from __future__ import annotations

from skillweave.terminal import harmless

_LONGEST_LABEL = 40


def markdown_text(text: str) -> str:
    """Return the text as one line of Markdown that starts or ends no link, image, HTML, code or table cell."""
    text = harmless(" ".join(text.split())).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "|[]`" else character for character in text)


def label_text(text: str) -> str:
    """Return the text as the label of a plot: on one line, shortened to the length of a label."""
    text = harmless(" ".join(text.split()))
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
