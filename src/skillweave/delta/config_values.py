"""Compare the configs of a tuned model and its base: a delta holds weights, and a config says how they are used."""

from __future__ import annotations

import re
from typing import Any

from skillweave.base.checkpoint import Checkpoint
from skillweave.errors import shown_value

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


def other_values(base: Checkpoint, tuned: Checkpoint) -> str | None:
    """A warning if the tuned model's config holds other values than the base's, which a delta loses; None if not.

    Only keys that both configs have are compared, as transformers reads them, so a value that is written out in one
    file and left to its default in the other is no difference.
    """
    differing = _differing(_values(base.config), _values(tuned.config))
    if not differing:
        return None
    named = [f"{key} is {_shown(new)} (base: {_shown(old)})" for key, (old, new) in differing.items()]
    more = f", and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return (
        f"The config of {tuned.where} is not that of {base.where}: {', '.join(named[:_MOST_NAMED])}{more}. A delta "
        f"holds weights only, so whatever is made of it answers with the base's values. If the tuned model needs its "
        f"own, name as the base a copy of the base's folder with these values in its config.json."
    )


def _values(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else {}


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Key -> (value of the base, value of the tuned model), also for the configs inside a config (``text_config``)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() & new.keys()):
        if key in _NO_EFFECT or _NO_EFFECT_NAMES.search(key) or old[key] == new[key]:
            continue
        if key.endswith("_config") and isinstance(old[key], dict) and isinstance(new[key], dict):
            found |= _differing(old[key], new[key], f"{prefix}{key}.")
        else:
            found[prefix + key] = old[key], new[key]
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else shown_value(value)
