"""Turn a text into tokens. Where the tokenizers library gives up, a message names the tokenizer and the text."""

from __future__ import annotations

from typing import Any

from skillweave.errors import UserError
from skillweave.terminal import one_line

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


def is_panic(error: BaseException) -> bool:
    """Return whether an error is that of a library in Rust that gave up; Python has no name for its class."""
    return type(error).__name__ == "PanicException"
