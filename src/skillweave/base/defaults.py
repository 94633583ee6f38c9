"""Read a model's own ``generation_config.json``.

Only its end tokens are used, unless the user asks for the model's defaults.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from skillweave.base.sizes import embedding_rows
from skillweave.errors import UserError, shown_value
from skillweave.files.read import read_json
from skillweave.progress import console, say_once

_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""These count only if the model's file sets ``do_sample``."""
HONOURED = (
    *_SAMPLED,
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
)
"""The defaults of a model that plain generation uses."""
HONOURED_WITH_TOOLS = ("temperature", "top_p", "top_k", "repetition_penalty")
"""The defaults of a model that generation with tools uses, which has a decoding loop of its own."""
_RANGES = {
    **dict.fromkeys(("top_p", "min_p", "epsilon_cutoff", "eta_cutoff"), (0, 1)),
    "typical_p": (0.01, 1),
    "temperature": (0, 100),
    "top_k": (0, 10**9),
    "repetition_penalty": (0.01, 100),
    "no_repeat_ngram_size": (0, 10**6),
    "min_new_tokens": (0, 10**9),
}
_WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens")
_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
LEAST_TEMPERATURE = 1e-30
"""Logits divided by less are infinite. From here down, the likeliest token has all the probability anyway."""
_LARGEST_ID = 2**31
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_OTHER_KEYS = {
    "do_sample", "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version",
    "max_length", "max_new_tokens", "use_cache", "return_dict_in_generate", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states", "num_return_sequences",
}  # fmt: skip
"""These do not influence which token is chosen. End tokens are always used; each call sets lengths and outputs."""


def model_defaults(
    model: Any, honoured: Collection[str] = HONOURED, *, generation: Any = None, rows: int | None = None
) -> dict[str, Any]:
    """Return those settings of the model's ``generation_config.json`` that choose tokens and are in ``honoured``.

    * ``generation`` replaces the model's own generation config, and ``rows`` the size of its vocabulary.
    * If the config asks for greedy decoding, the result has no keys of sampling. If it samples, the result has a
      ``temperature``.
    * Other settings that would choose tokens are named on the console: they are not used.
    * Raises :class:`UserError` for a value out of range, and for tokens that the vocabulary does not have.
    """
    config = generation or getattr(model, "generation_config", None)
    given = {} if config is None else {key: value for key, value in config.to_diff_dict().items() if value is not None}
    sampled = given.get("do_sample", False)
    chosen = {key: value for key, value in given.items() if key not in _OTHER_KEYS and not key.startswith("_")}
    if not sampled:
        chosen = {key: value for key, value in chosen.items() if key not in _SAMPLED}
    if left := sorted(set(chosen) - set(honoured)):
        console.print(f"not used of the model's generation_config.json: {', '.join(left)}", soft_wrap=True)
    # An empty list rules nothing out, and transformers does not take it everywhere.
    used = {key: value for key, value in chosen.items() if key in honoured and value not in ([], {})}
    for key, (low, high) in _RANGES.items():
        value = used.get(key, low)
        types = int if key in _WHOLE else int | float
        if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
            number = "whole number" if key in _WHOLE else "number"
            raise _refused(key, value, f"a {number} from {low} to {high}")
    rows = rows or embedding_rows(model)
    for key in _TOKEN_LISTS:
        for ids in _token_lists(key, used[key]) if key in used else ():
            if not isinstance(ids, list | tuple) or not ids or not all(_is_token(one, rows) for one in ids):
                raise _refused(key, used[key], f"lists of token ids from 0 to {rows - 1}")
    return {"temperature": 1.0, **used} if sampled else used


def _token_lists(key: str, value: Any) -> list[Any]:
    """Return the lists of token ids in a setting; None stands for a part that is not in its form."""
    if key in ("suppress_tokens", "begin_suppress_tokens"):
        return [value]
    if key == "bad_words_ids":
        return value if isinstance(value, list) else [None]
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list):
        return [None]
    return [
        pair[0]
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], float) and math.isfinite(pair[1])
        else None
        for pair in pairs
    ]


def _is_token(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _refused(key: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"the model's generation_config.json: {key} is {shown_value(value)}, expected {expected}. Correct it, or "
        "generate without the model's defaults"
    )


def generation_config_at(folder: Path) -> GenerationConfig | None:
    """Return the ``generation_config.json`` in a model's folder, or None if there is no such file.

    If transformers refuses the file, only its end tokens are used, and a message says so. Raises :class:`UserError` if
    the file is not a JSON object, or if a token id is not one.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    given = read_json(path)
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(given).__name__}")
    for key in _TOKEN_IDS:
        ids = given.get(key)
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (not isinstance(one, int) or isinstance(one, bool)):
                raise UserError(f"{path}: {key} holds {shown_value(one)}; expected the number of a token. Correct it")
            if one is not None and abs(one) > _LARGEST_ID:
                raise UserError(
                    f"{path}: {key} is {one}, which no vocabulary reaches. Copy the file from the base again"
                )
        if key == "pad_token_id" and isinstance(ids, list):
            raise UserError(f"{path}: {key} holds {shown_value(ids)}; expected the number of one token. Correct it")
    try:
        return GenerationConfig.from_dict(given)
    except Exception as error:  # transformers checks some values, and fails on others in various ways
        say_once(f"{path}: {str(error).rstrip('.')}. Its end tokens are used, and nothing else of it")
        return GenerationConfig(**{key: given[key] for key in _TOKEN_IDS if key in given})


@contextlib.contextmanager
def generating_as(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Inside this context, the model's generation config is ``config``.

    transformers takes every setting that a call does not give from the model's own config, which would bring back all
    settings of its file.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    models = [model] if inner is model else [model, inner]
    before = [one.__dict__.get("generation_config", _ABSENT) for one in models]
    try:
        for one in models:
            one.generation_config = config
        yield
    finally:
        for one, own in zip(models, before, strict=True):
            if own is _ABSENT:
                del one.generation_config
            else:
                one.generation_config = own


_ABSENT = object()


def config_of(choice: dict[str, Any], **also: Any) -> GenerationConfig:
    """Return a generation config with these settings for choosing tokens, and ``also``, but no other settings.

    It is greedy unless ``choice`` has a ``temperature`` above 0.
    """
    sampled = bool(choice.get("temperature"))
    config = GenerationConfig(do_sample=sampled, use_cache=True, num_beams=1, **also)
    for key, value in choice.items():
        if sampled or key not in _SAMPLED:
            setattr(config, key, max(value, LEAST_TEMPERATURE) if key == "temperature" else value)
    return config
