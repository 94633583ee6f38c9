"""How a model's own ``generation_config.json`` counts: not at all but for its end tokens, unless that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from skillweave.errors import UserError, shown_value
from skillweave.files.read import read_json
from skillweave.progress import console, say_once

_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""These count only where the model's file says ``do_sample``."""
HONOURED = (
    *_SAMPLED, "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "sequence_bias",
)  # fmt: skip
"""What plain generation takes over of a model's defaults."""
HONOURED_WITH_TOOLS = ("temperature", "top_p", "top_k", "repetition_penalty")
"""What the tool loop, which decodes by itself, takes over of them."""
_RANGES = {
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), (0, 1)),
    "temperature": (0, 100), "top_k": (0, 10**9), "repetition_penalty": (0.01, 100), "no_repeat_ngram_size": (0, 10**6),
    "min_new_tokens": (0, 10**9),
}  # fmt: skip
_MOST_ID = 2**31
_NO_CHOICE = {
    "do_sample", "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version",
    "max_length", "max_new_tokens", "use_cache", "return_dict_in_generate", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states", "num_return_sequences",
}  # fmt: skip
"""What chooses no token: ends are always used, and lengths and outputs are whose asks."""


def model_defaults(model: Any, honoured: Collection[str] = HONOURED, *, generation: Any = None) -> dict[str, Any]:
    """What of the model's ``generation_config.json``, or of ``generation`` in its place, chooses the tokens, among the
    keys in ``honoured``.

    Where it asks for greedy decoding, there are no keys of sampling. Keys that are not honoured are named on the
    console. ``temperature`` is there wherever it samples. Raises :class:`UserError` for a value out of range.
    """
    held = generation or getattr(model, "generation_config", None)
    given = {} if held is None else {key: value for key, value in held.to_diff_dict().items() if value is not None}
    sampled = given.get("do_sample", False)
    chosen = {key: value for key, value in given.items() if key not in _NO_CHOICE and not key.startswith("_")}
    if not sampled:
        chosen = {key: value for key, value in chosen.items() if key not in _SAMPLED}
    if left := sorted(set(chosen) - set(honoured)):
        console.print(f"not used of the model's generation_config.json: {', '.join(left)}", soft_wrap=True)
    used = {key: value for key, value in chosen.items() if key in honoured}
    for key, (low, high) in _RANGES.items():
        value = used.get(key, low)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(
                f"the model's generation_config.json: {key} is {value!r}, expected a number from {low} to {high}. "
                "Correct it, or ask without the model's defaults"
            )
    return {"temperature": 1.0, **used} if sampled else used


def generation_config_at(folder: Path) -> GenerationConfig | None:
    """What a model's folder holds in ``generation_config.json``; None where it has no such file.

    Of a file that transformers refuses the end tokens are kept, and that is said. Raises :class:`UserError` for one
    that is no JSON object.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    given = read_json(path)
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(given).__name__}")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = given.get(key)
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (not isinstance(one, int) or isinstance(one, bool)):
                raise UserError(f"{path}: {key} holds {shown_value(one)}; expected the number of a token. Correct it")
            if one is not None and abs(one) > _MOST_ID:
                raise UserError(
                    f"{path}: {key} is {one}, which no vocabulary reaches. Copy the file from the base again"
                )
        if key == "pad_token_id" and isinstance(ids, list):
            raise UserError(f"{path}: {key} holds {shown_value(ids)}; expected the number of one token. Correct it")
    try:
        return GenerationConfig.from_dict(given)
    except Exception as error:  # it checks some values, and trips over others
        say_once(f"{path}: {str(error).rstrip('.')}. Its end tokens are used, and nothing else of it")
        return GenerationConfig(**{key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
                                   if key in given})  # fmt: skip


@contextlib.contextmanager
def generating_as(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Within, the model's generation config is ``config``: transformers fills what a call leaves open from the model's
    own, which would bring back all that its file holds."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    held = [
        (one, one.__dict__.get("generation_config", _NOTHING)) for one in {id(m): m for m in (model, inner)}.values()
    ]
    try:
        for one, _ in held:
            one.generation_config = config
        yield
    finally:
        for one, before in held:
            if before is _NOTHING:
                del one.generation_config
            else:
                one.generation_config = before


_NOTHING = object()


def config_of(choice: dict[str, Any], **also: Any) -> GenerationConfig:
    """A generation config of that choice of tokens, and nothing else: greedy without a ``temperature`` above 0."""
    sampled = bool(choice.get("temperature"))
    config = GenerationConfig(do_sample=sampled, use_cache=True, num_beams=1, **also)
    for key, value in choice.items():
        if sampled or key not in _SAMPLED:
            setattr(config, key, value)
    return config
