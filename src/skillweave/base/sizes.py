"""The sizes of a model: the tokens that it has rows for, its layers, and the longest sequence that it was made for."""

from __future__ import annotations

from typing import Any


def embedding_rows(model: Any) -> int:
    """Return the number of tokens that the model's input embedding has a row for."""
    return int(model.get_input_embeddings().weight.shape[0])


def layer_count(model: Any) -> int:
    """Return the number of the model's decoder layers, as its config says."""
    return int(model.config.get_text_config().num_hidden_layers)


def context_length(model: Any) -> int | None:
    """Return the longest sequence that the model was made for, in tokens, or None if its config does not say."""
    return context_of(model.config)


def context_of(config: Any) -> int | None:
    """Return the longest sequence that a config names, in tokens, or None; MPT calls it ``max_seq_len``."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def has_experts(config: Any) -> bool:
    """Return whether a config is that of a mixture of experts, to which a router sends each token."""
    text = config.get_text_config()
    counts = [getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")]
    return any(isinstance(count, int) and count > 1 for count in counts)
