"""Turn ``config.json`` into transformers' config and an empty model of its class; no code of the folder is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from skillweave.base.folder import CONFIG, ModelFolder, read_config_file
from skillweave.base.quantised import QUANTISATION
from skillweave.errors import UserError

_COUNTS = re.compile(r"layer|label|expert", re.IGNORECASE)
"""Keys of config.json whose values are lengths of loops in transformers when it reads the file."""
_LARGEST_COUNT = 100_000
_IDS = re.compile(r"token_id$|^sliding_window$")
"""Keys of numbers that transformers puts into 64-bit tensors without a check."""
_LARGEST_ID = 2**31
_FLAGS = ("output_hidden_states", "output_attentions")
_LARGEST_BUFFERS = 2**31
"""Bytes of buffers (masks, rotations) that a class may create beside its weights, if the weights are smaller."""
_ATTENTIONS = {
    None,
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "grouped_mm",
    "batched_mm",
}


def read_config_json(folder: Path) -> Any:
    """The transformers config of a folder. Raises :class:`UserError` if there is none, or if it is unknown."""
    return config_of(read_config_file(folder), folder)


def config_of(values: Mapping[str, Any], folder: Path) -> Any:
    """The transformers config with ``values``, which were read from ``config.json`` in ``folder``.

    The class is always transformers' own for the ``model_type``: code that the file names (``auto_map``) is not used.
    Raises :class:`UserError` for an architecture that transformers does not know, and for values that its config does
    not accept.
    """
    path = folder / CONFIG
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        shown = f"'{kind}'" if isinstance(kind, str) else "(no 'model_type' that is a string)"
        raise UserError(
            f"{path}: transformers does not open the architecture {shown}. Code that comes with a checkpoint is never "
            f"run: name a model of an architecture that transformers has, or upgrade transformers."
        )
    _check_values(values, path)
    own = {key: value for key, value in values.items() if key not in ("auto_map", *QUANTISATION)}
    try:
        return CONFIG_MAPPING[kind].from_dict(
            PreTrainedConfig._decode_special_floats(own)
        )  # transformers writes infinity as an object
    except Exception as error:  # each class checks its values in its own way, or fails on them
        raise UserError(f"{path}: transformers' {kind} does not take these values ({_first_line(error)})") from error


def skeleton_of(config: Any, files: ModelFolder) -> Any:
    """A model of the config's class without weights (``meta`` device): its names, its ties and its kinds of layers.

    Raises :class:`UserError` if the class cannot be built from the config, if it is no causal language model, and if it
    would be far larger than the files, because even an empty model takes time for every layer.
    """
    _check_decoder_only(config, files.path)
    limit = 10_000 + 64 * len(files.headers)
    modules = 0

    def count(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > limit:
            raise _TooLargeError(
                f"it asks for more than {limit} modules, and the files hold {len(files.headers)} tensors"
            )

    counting = nn.modules.module.register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # odd values can fail anywhere in a class
        raise UserError(
            f"{files.path / CONFIG}: transformers cannot build a {config.model_type} model from it "
            f"({_first_line(error)}). Download the folder again."
        ) from error
    finally:
        counting.remove()
    _check_causal(model, files.path / CONFIG)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    stored = sum(file.stat().st_size for file in files.weights)
    if buffers > max(_LARGEST_BUFFERS, stored):
        raise UserError(
            f"{files.path / CONFIG}: the model would make tables of {buffers / 1e9:.1f} GB beside weights of "
            f"{stored / 1e9:.1f} GB: a size in it is wrong. Download the folder again."
        )
    return model


def _check_decoder_only(config: Any, folder: Path) -> None:
    """Raise unless transformers has a causal language model of the config that is the whole of it."""
    kind = config.model_type
    # transformers would open the decoder of some, such as BART and Whisper, and leave the encoder out.
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{folder}: '{kind}' is an encoder with a decoder, not a causal language model. Name a model that is a "
            f"decoder alone, such as a Llama, Qwen or Gemma."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        part = (
            "It reads more than text: save its language model (text_config, with the language_model and lm_head of the "
            "weights) as a folder of its own, and name that."
            if hasattr(config, "text_config")
            else "Name one that it opens with AutoModelForCausalLM."
        )
        raise UserError(f"{folder}: '{kind}' is not a causal language model that transformers knows. {part}")


def _check_causal(model: Any, path: Path) -> None:
    """Raise for a model of the BERT kind whose tokens see those behind them: it fills gaps and cannot generate."""
    config = model.config
    if getattr(config, "attn_type", None) == "bi":
        raise UserError(
            f"{path}: attn_type is 'bi', so each token of this {config.model_type} sees those behind it, and it is not "
            f"a causal language model. Name a model that generates text from left to right."
        )
    masked = getattr(config, "is_decoder", None) is False and any(
        getattr(module, "is_decoder", None) is False for module in model.modules()
    )
    if masked or getattr(config, "causal", None) is False:
        key = "is_decoder" if masked else "causal"
        raise UserError(
            f"{path}: {key} is false, so this {config.model_type} is a masked language model, not a causal language "
            f"model: each token sees those behind it. Name a model that generates text, or set {key} to true if it was "
            f"trained that way."
        )


class _TooLargeError(Exception):
    """A class under construction has more modules than its files could fill."""


def _check_values(values: Any, path: Path) -> None:
    """Raise for counts that no model has, and for an attention that would be downloaded as code from the hub."""
    if isinstance(values, list):
        for value in values:
            _check_values(value, path)
        return
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        # The index of a layer may be negative.
        least = 0 if str(key).startswith(("num_", "n_")) else -_LARGEST_COUNT
        if number and _COUNTS.search(str(key)) and not least <= value <= _LARGEST_COUNT:
            raise UserError(
                f"{path}: {key} is {value}; expected a number up to {_LARGEST_COUNT}, which no model exceeds. Download "
                f"the folder again."
            )
        if number and _IDS.search(str(key)) and value > _LARGEST_ID:
            raise UserError(f"{path}: {key} is {value}, more than {_LARGEST_ID}. Download the folder again.")
        if key == "sliding_window" and not (number or value in (None, False)):
            raise UserError(
                f"{path}: {key} is {value!r:.40}; expected a whole number or null. Download the folder again."
            )
        if key in _FLAGS and not isinstance(value, bool | None):
            raise UserError(f"{path}: {key} is {value!r:.40}; expected true or false. Download the folder again.")
        if str(key).strip("_") in ("attn_implementation", "experts_implementation"):
            named = value.values() if isinstance(value, Mapping) else [value]
            if other := [one for one in named if not (one is None or isinstance(one, str)) or one not in _ATTENTIONS]:
                raise UserError(
                    f"{path}: {key} is {other[0]!r}. Only transformers' own are used "
                    f"({', '.join(sorted(filter(None, _ATTENTIONS)))}): remove the key from the file."
                )
        _check_values(value, path)


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
