"""Turn a text into tokens, with a tokenizer that anyone may have written.

Where the tokenizers library gives up, a message names the tokenizer and the text. Nothing can stop a rule while it
runs, so a tokenizer whose rules make texts many times longer is refused when it is opened.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.terminal import one_line

MOST_GROWTH = 100
"""How many times longer a tokenizer may make a text. Usual ones write three bytes in place of a space."""
_LONGEST_REASON = 200
_SHOWN = 60


def tokenized(tokenizer: Any, text: str, **options: Any) -> Any:
    """Return what ``tokenizer(text, **options)`` returns.

    Raises :class:`UserError` if the library gives up, as for a pattern of the tokenizer that tries too many ways to
    match the text.
    """
    try:
        return tokenizer(text, **options)
    except BaseException as error:
        if not is_panic(error):
            raise
        owner = getattr(tokenizer, "travels_with", None) or getattr(tokenizer, "name_or_path", "") or "the base"
        raise UserError(
            f"the tokenizer of {owner} cannot turn a text of {len(text):,} characters into tokens "
            f"({one_line(error, _LONGEST_REASON)}): shorten or change the text, or use a base whose tokenizer.json has "
            f"simpler patterns. The text begins: {text[:_SHOWN]!r}"
        ) from error


def check_growth(tokenizer: Any, path: Path) -> None:
    """Raise :class:`UserError` if the rules of the tokenizer at ``path`` make a text more than 100 times longer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "decoder"):
        rules = getattr(backend, part, None)
        where = str(path / "tokenizer.json")
        growth = 1.0 if rules is None else _growth(parse_json(rules.__getstate__().decode(), where))
        if growth > MOST_GROWTH:
            raise UserError(
                f"{where}: the {part} can make a text {growth:,.0f} times longer, and up to "
                f"{MOST_GROWTH} times is allowed: use another tokenizer, or shorten the 'content' of its Replace rules"
            )


def _growth(rules: dict[str, Any]) -> float:
    """Return how many times longer rules of the tokenizers library can make a text, at most."""
    inner = rules.get("normalizers") or rules.get("decoders")
    if inner:
        return prod(map(_growth, inner))
    if rules.get("type") != "Replace":
        return 1.0
    # A regular expression may match a single character, or none: then the content is put between all characters.
    matched = rules["pattern"].get("String", "")
    return max(1.0, len(rules["content"]) / len(matched) if matched else len(rules["content"]) + 1.0)


def is_panic(error: BaseException) -> bool:
    """Return whether an error is that of a library in Rust that gave up; Python has no name for its class."""
    return type(error).__name__ == "PanicException"
