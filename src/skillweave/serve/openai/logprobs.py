"""Log-probabilities in the shapes of OpenAI's routes, with the real texts and bytes of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from skillweave.base.chat import text_of
from skillweave.engine.interface import AnswerToken

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_LEAST = -9999.0
"""What OpenAI writes for a token of no probability at all, because JSON has no infinity."""


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level tokenizer's vocabulary stands for.

    Source: GPT-2's ``bytes_to_unicode``: printable characters stand for themselves, the others are moved up by 256.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return {**alphabet, **{chr(256 + at): byte for at, byte in enumerate(others)}}


_ALPHABET = _byte_alphabet()


def token_bytes(tokenizer: Any, id_: int) -> bytes:
    """Return the bytes of a token, also of one that is a part of a character.

    The bytes of such a part come from its name in the vocabulary: ``<0xE2>``, or characters that stand for bytes.
    """
    text, name = text_of(tokenizer, [id_], special=True), str(tokenizer.convert_ids_to_tokens(id_))
    if _REPLACEMENT not in text:
        # Some tokenizers drop the space at the beginning of a text, and here each token is a text of its own.
        return (f" {text}" if name.startswith(_SPACE) and not text.startswith(" ") else text).encode()
    if name.startswith("<0x") and name.endswith(">") and len(name) == 6:
        return bytes([int(name[3:5], 16)])
    if all(character in _ALPHABET for character in name):
        return bytes(_ALPHABET[character] for character in name)
    return text.encode()


def chat_logprobs(tokenizer: Any, tokens: Sequence[AnswerToken]) -> list[ChatCompletionTokenLogprob]:
    """Return the tokens as chat completions show them."""
    return [
        ChatCompletionTokenLogprob(
            **_shown(tokenizer, token.id, token.logprob),
            top_logprobs=[TopLogprob(**_shown(tokenizer, id_, value)) for id_, value in token.top],
        )
        for token in tokens
    ]


def _shown(tokenizer: Any, id_: int, logprob: float | None) -> dict[str, Any]:
    raw = token_bytes(tokenizer, id_)
    value = _LEAST if logprob is None else max(logprob, _LEAST)
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": value}


def completion_logprobs(tokenizer: Any, tokens: Sequence[AnswerToken], offset: int) -> Logprobs:
    """Return the tokens as completions show them; ``offset`` is where their text begins, in characters.

    A token that is a part of a character is shown as ``bytes:\\xe2``, as OpenAI does.
    """
    texts, offsets = [], []
    for token in tokens:
        texts.append(_named(tokenizer, token.id))
        offsets.append(offset)
        offset += token_length(tokenizer, [token])
    return Logprobs(
        tokens=texts,
        token_logprobs=[_LEAST if token.logprob is None else max(token.logprob, _LEAST) for token in tokens],
        top_logprobs=[{_named(tokenizer, id_): max(value, _LEAST) for id_, value in token.top} for token in tokens],
        text_offset=offsets,
    )


def token_length(tokenizer: Any, tokens: Sequence[AnswerToken]) -> int:
    """Return the characters of the texts of tokens, each read alone."""
    return sum(len(token_bytes(tokenizer, token.id).decode("utf-8", "replace")) for token in tokens)


def _named(tokenizer: Any, id_: int) -> str:
    raw = token_bytes(tokenizer, id_)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
