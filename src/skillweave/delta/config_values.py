"""Compare the configs of two models with weights that belong together: a config says how the weights are used.

A delta and a pack hold weights alone, and a fingerprint covers weights alone. So a difference between the configs of a
tuned model and its base, or of two bases with one fingerprint, must be said.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from skillweave.base.checkpoint import Checkpoint
from skillweave.errors import shown_value
from skillweave.files.hashes import digest
from skillweave.files.values import check_free
from skillweave.progress import say_once

_NO_EFFECT = {
    "_name_or_path", "architectures", "attn_implementation", "dtype", "gradient_checkpointing", "id2label", "label2id",
    "name_or_path", "output_attentions", "output_hidden_states", "output_router_logits", "pretraining_tp",
    "problem_type", "quantization_config", "return_dict", "task_specific_params", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache", "vocab_size",
}  # fmt: skip
"""Keys that no answer depends on, or that are compared otherwise: ties and token rows with the tensors."""
_NO_EFFECT_NAMES = re.compile(r"token_ids?$|drop|^init_|^initializer_|loss_coef$")
"""Special tokens (they travel with the tokenizer and the generation config), and what only training uses."""
_MOST_NAMED = 8
_LONGEST = 80
"""Most characters of a value on a card. A longer one, such as a list with a word for each layer, is there as a hash."""
_ROUNDING = 1e-6
"""Relative difference of two numbers that are one: a GGUF file rounds them to float32."""


def other_values(base: Checkpoint, tuned: Checkpoint) -> str | None:
    """A warning if the tuned model's config holds other values than the base's, which a delta loses; None if not.

    Only keys that both configs have are compared, as transformers reads them, so a value that is written out in one
    file and left to its default in the other is no difference.
    """
    named = _named(_values(base.config), _values(tuned.config), "base")
    if named is None:
        return None
    return (
        f"The config of {tuned.where} is not that of {base.where}: {named}. A delta "
        f"holds weights only, so whatever is made of it answers with the base's values. If the tuned model needs its "
        f"own, name as the base a copy of the base's folder with these values in its config.json."
    )


def recorded_values(config: Any) -> dict[str, Any]:
    """The values of a base's config that its answers depend on, as JSON for the card of what is made on it."""
    return {key: _recorded(value) for key, value in sorted(_values(config).items()) if _matters(key)}


def other_than_recorded(recorded: Mapping[str, Any], config: Any) -> str | None:
    """The values of a config that differ from those of :func:`recorded_values`, in words; None if there are none.

    Only keys that both have are compared, because another version of transformers may have other keys.
    """
    return _named(recorded, recorded_values(config), "then")


def tell_other_config(recorded: Mapping[str, Any], config: Any, made: str, base_ref: str) -> None:
    """Print a warning if the ``config`` of a base differs from the one ``recorded`` when something was made on it.

    ``made`` names what was made, and ``base_ref`` the base that it was made on.
    """
    if (other := other_than_recorded(recorded, config)) is not None:
        say_once(
            f"Warning: this base has the weights of the one that {made} was made on, and another config: {other}. "
            f"Answers can differ from those that were trained and measured. Open the base as it was then ({base_ref}), "
            f"or make {made} again on this one."
        )


def _values(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else {}


def _matters(key: str) -> bool:
    return key not in _NO_EFFECT and not _NO_EFFECT_NAMES.search(key)


def _recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _recorded(inner) for key, inner in sorted(value.items(), key=str) if _matters(str(key))}
    text = json.dumps(value, default=str)
    try:
        return json.loads(text) if len(text) <= _LONGEST and check_free(value) == value else digest(text)
    except ValueError:  # infinity, or a value that is not JSON
        return digest(text)


def _named(old: Mapping[str, Any], new: Mapping[str, Any], owner: str) -> str | None:
    """The differing values in words, each with the value of ``old``, which is that of ``owner``; None if all agree."""
    named = [
        f"{key} is {_shown(value)} ({owner}: {_shown(before)})" for key, (before, value) in _differing(old, new).items()
    ]
    more = f", and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more if named else None


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Key -> (old value, new value), also for the values inside a value (``text_config``, ``rope_parameters``)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() & new.keys(), key=str):
        if not _matters(str(key)) or _equal(old[key], new[key]):
            continue
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            found |= _differing(old[key], new[key], f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = old[key], new[key]
    return found


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=_ROUNDING)
    return bool(old == new)


def _shown(value: Any) -> str:
    return "not set" if value is None else shown_value(value)
