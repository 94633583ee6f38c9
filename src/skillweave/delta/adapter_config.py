"""``adapter_config.json`` of a PEFT adapter: read, checked, and judged: plain LoRA, to be merged, or no delta at all.

Nothing that the file names is opened, fetched, imported or run: neither its base, nor classes, nor caches of its
initialisation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillweave.base.bundled import BUNDLED
from skillweave.delta.adapter_numbers import check_adapter_numbers
from skillweave.errors import UserError, shown_value
from skillweave.files.folder import check_regular
from skillweave.files.read import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PICKLE_FILE = "adapter_model.bin"
_PROMPTS = "it adds virtual tokens to the prompt and changes no weight of the model"
_ROUTED = "it mixes its parts anew for every input"
_NO_CHANGE_OF_WEIGHTS = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": "it adds keys and values to the cache and changes no weight of the model",
    "ADAPTION_PROMPT": "it adds prompts inside the attention and changes no weight of the model",
    "XLORA": _ROUTED,
    "POLY": _ROUTED,
    "LILY": _ROUTED,
    "SHADOW": "it runs a second, small network beside the model",
}
_NOT_OF_WEIGHTS_ALONE = {
    "alora_invocation_tokens": "it acts only after its invocation tokens (aLoRA)",
    "arrow_config": _ROUTED,
    "layer_replication": "it repeats layers of the base, which makes another architecture",
}
# Options of LoraConfig under which s B A is not the change of W, or not the change of one matrix.
_MORE_THAN_LORA = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
# Initialisations that leave the base as it is. The others write into the base's weights before training starts.
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# These write what they take from the base's weights alone, so it can be done again; the fast PiSSA draws at random.
_FROM_THE_WEIGHTS = ("pissa", "olora", "loftq")
# Keys of very old adapters and of other trainers, without meaning for the weights.
_NEUTRAL = {"merge_weights", "enable_lora", "unsloth_fixed"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "modules_to_save": list,
    "target_modules": (str, list),
    "target_parameters": list,
    "init_lora_weights": (bool, str),
    "eva_config": dict,
}
_GGUF = re.compile(r"([.-](I?Q\d\w*|BF16|F16|F32))?\.gguf$", re.IGNORECASE)
_LARGEST = 2**20  # of any size in a config; seeds are exempt


def check_adapter_files(folder: Path) -> None:
    """Raise :class:`UserError` unless ``folder`` holds the two files of one PEFT adapter."""
    if not (folder / CONFIG_FILE).is_file():
        nested = sorted(str(found.parent.relative_to(folder)) for found in folder.glob(f"*/**/{CONFIG_FILE}"))
        if nested:
            raise UserError(
                f"{folder} holds {len(nested)} adapters in folders of its own ({', '.join(nested[:8])}): "
                f"name one with --subfolder"
            )
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if (folder / file).is_file():
            check_regular(folder / file, folder)
            continue
        if file == WEIGHTS_FILE and (folder / _PICKLE_FILE).is_file():
            raise UserError(
                f"{folder} has no {file}: it holds its weights as pickle ({_PICKLE_FILE}), which can run code when it "
                f"is opened and is not read. Convert it where you trust it: PeftModel.from_pretrained(...), then "
                f"save_pretrained(new)."
            )
        raise UserError(
            f"{folder} has no {file}: a PEFT adapter is {CONFIG_FILE} + {WEIGHTS_FILE} "
            f"(save_pretrained with safe_serialization; pickle is not read)"
        )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter that changes weights.

    Raises :class:`UserError`, by key, for a kind that changes no weights, a kind or an option that the installed PEFT
    does not know, and a class of the trainer's own code.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object with keys, found {type(config).__name__}. Save the adapter again.")
    if not isinstance(config.get("peft_type"), str):
        raise UserError(f"{path}: 'peft_type' is missing: this is no PEFT adapter")
    kind = config["peft_type"]
    if kind in _NO_CHANGE_OF_WEIGHTS:
        raise UserError(
            f"{path}: an adapter of the kind {kind} cannot become a delta: {_NO_CHANGE_OF_WEIGHTS[kind]}. "
            f"Serve it with PEFT, or train a LoRA on the same data."
        )
    for key, reason in _NOT_OF_WEIGHTS_ALONE.items():
        if config.get(key):
            raise UserError(f"{path}: '{key}' is set: {reason}, so it cannot become a delta of the weights")
    for key, wanted in _TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], wanted):
            raise UserError(f"{path}: '{key}' is a {type(config[key]).__name__}, which PEFT never writes there")
        held = config[key] if isinstance(config.get(key), list) else []
        if odd := [one for one in held if not isinstance(one, str)]:
            raise UserError(f"{path}: '{key}' holds {shown_value(odd[0])} where the name of a module is expected")
    if kind == "LORA":  # the rank_pattern of AdaLoRA holds masks
        check_adapter_numbers(config, path)
    _check_class(config.get("auto_mapping"), path)
    _check_known(config, path)
    _check_init(config.get("init_lora_weights", True), path)
    return config


def why_merged(config: Mapping[str, Any]) -> str | None:
    """Why an adapter is more than W + s B A, in words; None for plain LoRA."""
    if config["peft_type"] != "LORA":
        return f"its kind is {config['peft_type']}"
    for key in _MORE_THAN_LORA:
        if config.get(key):
            return f"'{key}' is set"
    init = config.get("init_lora_weights", True)
    return None if init in _PLAIN_INITS else f"init_lora_weights={init!r} changed the base before training"


def other_base(config: Mapping[str, Any], ref: str, folder: Path | None) -> str | None:
    """A warning where the adapter names another base than the one that it is laid on; None where they agree.

    Names agree if they end alike (``owner/name``, ``.../name``, ``name.Q4_1.gguf``), or if the base's own config names
    the adapter's base. An adapter that names none is not warned about.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        return None
    ours = {ref, str(folder)} if folder else {ref}
    if ref.startswith("bundled:") and (known := BUNDLED.get(ref.removeprefix("bundled:"))):
        ours.add(known[1])
    if folder is not None and (folder / "config.json").is_file():
        ours.add(str(read_json(folder / "config.json").get("_name_or_path", "")))
    if _short(named) in {_short(name) for name in ours}:
        return None
    # A folder of the hub's cache: .../models--owner--name/snapshots/<commit>
    cached = f"models--{named.strip('/').replace('/', '--')}".casefold()
    if folder is not None and cached in (part.casefold() for part in folder.parts):
        return None
    return (
        f"The adapter names the base '{named}', and it is laid on '{ref}'. Even where names and "
        f"shapes fit, an adapter does not do what it learnt on a base that it was not trained on."
    )


def _short(name: str) -> str:
    """The last part of a name, less the quantisation and the ending of a GGUF file."""
    return _GGUF.sub("", name.strip().rstrip("/").rpartition("/")[2]).casefold()


def _check_class(mapping: Any, path: Path) -> None:
    if not mapping:
        return
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if not (isinstance(library, str) and library.split(".")[0] == "transformers"):
        raise UserError(
            f"{path}: 'auto_mapping' names the code '{library}'. Code that comes with an adapter is never run: train "
            f"on a class of transformers, or set auto_mapping to null if the base is one."
        )


def _check_known(config: Mapping[str, Any], path: Path) -> None:
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if config["peft_type"] not in kinds:
        writer = config.get("peft_version") or "the file does not say which"
        raise UserError(
            f"{path}: peft_type is '{config['peft_type'][:64]}', which the installed PEFT {__version__} does not know: "
            f"install the one that wrote it ({writer}), or merge the adapter where it was trained "
            f"(merge_and_unload, save_pretrained) and zip the result as --tuned"
        )
    known = {field.name for field in dataclasses.fields(kinds[config["peft_type"]])} | _NEUTRAL
    if unknown := sorted(key for key, value in config.items() if key not in known and value):
        raise UserError(
            f"{path}: the installed PEFT {__version__} does not know {', '.join(map(repr, unknown))} "
            f"(written by PEFT {config.get('peft_version', 'of unknown version')}), and the weights may depend on it: "
            f"upgrade peft, or set it to null if you know that it does not matter"
        )
    for key, value in config.items():
        if "seed" in key or "key" in key:
            continue
        for size in value.values() if isinstance(value, dict) else [value]:
            if isinstance(size, int) and not isinstance(size, bool) and abs(size) > _LARGEST:
                raise UserError(f"{path}: '{key}' is {str(size)[:20]}, more than any adapter has: the file is damaged")


def _check_init(init: Any, path: Path) -> None:
    if init in (*_PLAIN_INITS, *_FROM_THE_WEIGHTS):
        return
    raise UserError(
        f"{path}: init_lora_weights={init!r} changed the base before training, in a way that cannot be done again. "
        f"Save the adapter as plain LoRA (path_initial_model_for_weight_conversion in PEFT's save_pretrained)."
    )
