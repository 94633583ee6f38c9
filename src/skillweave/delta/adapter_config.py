"""Read ``adapter_config.json`` of a PEFT adapter, check it, and decide: plain LoRA, to be merged, or not a delta.

What is accepted are lists of known good kinds and options: what a later PEFT adds is refused until it is listed here.
Nothing that the file names is opened, downloaded, imported or run: not its base, no classes, no caches of its
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
_MLX_FILE = "adapters.safetensors"

# Kinds of adapters whose whole effect is a change of weights, which PEFT can merge.
_MERGEABLE_KINDS = {
    "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA",
    "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA",
    "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
}  # fmt: skip
_PROMPTS = "it adds virtual tokens to the prompt and does not change the model's weights"
_ROUTED = "it mixes its parts differently for every input"
# Why other kinds cannot become a delta.
_OTHER_KINDS = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": "it adds keys and values to the cache and does not change the model's weights",
    "ADAPTION_PROMPT": "it adds prompts inside the attention and does not change the model's weights",
    "XLORA": _ROUTED,
    "POLY": _ROUTED,
    "LILY": _ROUTED,
    "SHADOW": "it runs a second, small network beside the model",
}
# Options of LoraConfig with which the change of a matrix is s B A and nothing else.
_PLAIN_OPTIONS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Options of LoraConfig with which it is something else, or changes more than one matrix: PEFT merges these adapters.
_MERGED_OPTIONS = (
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
# Options of LoraConfig with which the adapter is more than a change of weights, and why.
_REFUSED_OPTIONS = {
    "alora_invocation_tokens": "it acts only after its invocation tokens (aLoRA)",
    "arrow_config": _ROUTED,
    "layer_replication": "it repeats layers of the base, which makes another architecture",
}
# Initialisations that leave the base as it is. The others write into the base's weights before training starts.
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# These initialisations are computed from the base's weights alone, so PEFT can repeat them. The fast PiSSA is random.
_REPEATABLE_INITS = ("pissa", "olora", "loftq")
# Keys of very old adapters and of other trainers, which have no effect on the weights.
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
_MERGE_IT = "Merge it where it was trained (merge_and_unload, save_pretrained), and zip the result as --tuned."
_LARGEST = 2**20  # of any size in a config; seeds are exempt


def check_adapter_files(folder: Path) -> None:
    """Raise :class:`UserError` unless ``folder`` holds the two files of one PEFT adapter."""
    if not (folder / CONFIG_FILE).is_file():
        nested = sorted(str(config.parent.relative_to(folder)) for config in folder.glob(f"*/**/{CONFIG_FILE}"))
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
        if file == WEIGHTS_FILE and (folder / _MLX_FILE).is_file():
            raise UserError(
                f"{folder} holds an adapter of MLX ({_MLX_FILE}), which is not read: fuse it into its model with "
                f"`mlx_lm.fuse`, and name the result as the tuned model"
            )
        raise UserError(
            f"{folder} has no {file}: a PEFT adapter is {CONFIG_FILE} + {WEIGHTS_FILE} "
            f"(save_pretrained with safe_serialization; pickle is not read)"
        )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter whose whole effect is a change of weights.

    Raises :class:`UserError`, which names the key, for

    - a kind or an option that is more than a change of weights;
    - a kind or an option that the installed PEFT, or this version of SkillWeave, does not know;
    - a class of the trainer's own code;
    - a value of the wrong type or of an impossible size.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object with keys, found {type(config).__name__}. Save the adapter again.")
    if not isinstance(config.get("peft_type"), str):
        raise UserError(f"{path}: 'peft_type' is missing: this is not a PEFT adapter")
    kind = config["peft_type"]
    if kind in _OTHER_KINDS:
        raise UserError(
            f"{path}: an adapter of the kind {kind} cannot become a delta: {_OTHER_KINDS[kind]}. "
            f"Serve it with PEFT, or train a LoRA on the same data."
        )
    for key, reason in _REFUSED_OPTIONS.items():
        if config.get(key):
            raise UserError(f"{path}: '{key}' is set: {reason}, so it cannot become a delta of the weights")
    for key, wanted in _TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], wanted):
            raise UserError(f"{path}: '{key}' is a {type(config[key]).__name__}, which PEFT never writes there")
        names = config[key] if isinstance(config.get(key), list) else []
        if odd := [name for name in names if not isinstance(name, str)]:
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
    for key in _MERGED_OPTIONS:
        if config.get(key):
            return f"'{key}' is set"
    init = config.get("init_lora_weights", True)
    return None if init in _PLAIN_INITS else f"init_lora_weights={init!r} changed the base before training"


def other_base(config: Mapping[str, Any], ref: str, folder: Path | None) -> str | None:
    """A warning if the adapter names another base than ``ref`` (opened from ``folder``); None if the names agree.

    Names agree if their last parts are equal (``owner/name``, ``.../name``, ``name.Q4_1.gguf``), or if the base's own
    config names the adapter's base. An adapter that names no base causes no warning.
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
        f"The adapter names the base '{named}', and it is used on '{ref}'. Even if names and shapes fit, an adapter "
        f"does not do what it learnt on a base that it was not trained on."
    )


def _short(name: str) -> str:
    """The last part of a name, without the quantisation and the ending of a GGUF file."""
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
    # PEFT takes seconds to import, and only adapters need it.
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {kind.value: config_class for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = config["peft_type"]
    if kind not in kinds:
        writer = config.get("peft_version") or "the file does not say which"
        raise UserError(
            f"{path}: peft_type is '{kind[:64]}', which the installed PEFT {__version__} does not know: "
            f"install the one that wrote it ({writer}), or merge the adapter where it was trained "
            f"(merge_and_unload, save_pretrained) and zip the result as --tuned"
        )
    if kind not in _MERGEABLE_KINDS:
        raise UserError(
            f"{path}: peft_type is '{kind}'. It is newer than this version of SkillWeave, which does not know whether "
            f"merging it keeps all that it does. {_MERGE_IT}"
        )
    defaults = {field.name: _default(field) for field in dataclasses.fields(kinds[kind])}
    options = {key: value for key, value in config.items() if value and key not in _NEUTRAL}
    if unknown := sorted(options.keys() - defaults.keys()):
        raise UserError(
            f"{path}: the installed PEFT {__version__} does not know {', '.join(map(repr, unknown))} "
            f"(written by PEFT {config.get('peft_version', 'of unknown version')}), and the weights may depend on it: "
            f"upgrade peft, or set it to null if you know that it does not matter"
        )
    changed = {key for key, value in options.items() if value != defaults[key]}
    if kind == "LORA" and (newer := sorted(changed - {*_PLAIN_OPTIONS, *_MERGED_OPTIONS})):
        raise UserError(
            f"{path}: {', '.join(map(repr, newer))} is set. The option is newer than this version of SkillWeave, which "
            f"does not know whether the adapter is still a change of weights. {_MERGE_IT}"
        )
    for key, value in config.items():
        if "seed" in key or "key" in key:
            continue
        for size in value.values() if isinstance(value, dict) else [value]:
            if isinstance(size, int) and not isinstance(size, bool) and abs(size) > _LARGEST:
                raise UserError(f"{path}: '{key}' is {str(size)[:20]}, more than any adapter has: the file is damaged")


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _check_init(init: Any, path: Path) -> None:
    if init in (*_PLAIN_INITS, *_REPEATABLE_INITS):
        return
    raise UserError(
        f"{path}: init_lora_weights={init!r} changed the base before training, in a way that cannot be done again. "
        f"Save the adapter as plain LoRA (path_initial_model_for_weight_conversion in PEFT's save_pretrained)."
    )
