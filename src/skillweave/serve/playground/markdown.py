"""Make a model's text safe and faithful as Markdown: its tags are shown as they stand, its images are not loaded.

The page's own sanitiser and its content security policy stand behind this.
"""

from __future__ import annotations

import re

_CODE = re.compile(r"(?ms)^(?P<fence>`{3,}|~{3,}).*?(?:^(?P=fence)|\Z)|(?P<ticks>`+)[^`].*?(?<!`)(?P=ticks)(?!`)")


def shown_markdown(text: str) -> str:
    """Return Markdown that shows the text with its lists, emphasis and code, but without its HTML and images."""
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_plain(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")
