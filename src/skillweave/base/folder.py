"""Decide which files of a folder are the model. Hashing, subtracting and loading all use this one decision.

transformers has rules of its own for a folder: it applies an adapter that it finds there, ``config.json`` may name
other weights, and a single file wins over an index. These rules are not used: the tensors found here are hashed, and
the same tensors are given to transformers. A folder that can be read in two ways is refused, and the message names
both.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skillweave.base.safetensors_io import Spec, read_headers
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.terminal import one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_TRAINERS = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
"""Beginnings of the names of pickled files that are the state of a training, and no weights."""
_USED = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Suffixes of the files that SkillWeave, or transformers' tokenizers, open in a folder."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of a Hugging Face folder that are its model. Made by :func:`find_model`.

    ``config`` is the content of ``config.json``; ``weights`` are the safetensors files, sorted.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    _owners: dict[str, Path]

    @cached_property
    def headers(self) -> dict[str, Spec]:
        """Name in the files -> (shape, dtype) of every tensor."""
        return self._placed[0]

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name in the files -> the file that holds the tensor."""
        return self._placed[1]

    @cached_property
    def _placed(self) -> tuple[dict[str, Spec], dict[str, Path]]:
        headers: dict[str, Spec] = {}
        files: dict[str, Path] = {}
        for file in self.weights:
            for name, spec in read_headers(file).items():
                owner = self._owners.get(name, file)
                if owner != file or name in files:
                    raise UserError(
                        f"{self.path}: the tensor '{name}' is in {file.name}, and also in {files.get(name, owner).name}"
                        f"{f', where {INDEX} puts it' if name in self._owners else ''}. Save the model again, so that "
                        f"each tensor is in one file."
                    )
                headers[name], files[name] = spec, file
        for name, owner in self._owners.items():
            if name not in files:
                raise UserError(
                    f"{self.path}: {INDEX} says that '{name}' is in {owner.name}, which does not hold it. Download the "
                    f"folder again."
                )
        return headers, files


def find_model(folder: Path) -> ModelFolder:
    """The model in a Hugging Face folder.

    Raises :class:`UserError` if there is none, if a file is missing, is not a regular file or is a link out of the
    folder, and if it is not clear which files are the model.
    """
    check_entries(folder)
    config = read_config_file(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds a whole model ({CONFIG}) and an adapter (adapter_config.json) that other tools would "
            f"apply to it: move the adapter into a folder of its own and give it as an adapter"
        )
    weights, owners = _weights(folder)
    return ModelFolder(folder, config, weights, owners)


def read_config_file(folder: Path) -> dict[str, Any]:
    """The content of ``config.json`` in a folder. Raises :class:`UserError` if it is not a model's."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(what_it_is(folder))
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(config).__name__}. Download the folder again.")
    for key, why in (
        ("transformers_weights", "names other weights than those that the folder is known by"),
        ("fusion_config", "changes the model's class while it is loaded"),
    ):
        if config.get(key) is not None:
            raise UserError(f"{path}: '{key}' {why}, which is not supported. Remove it from the file.")
    return config


def check_entries(folder: Path) -> None:
    """Raise unless every file that could be opened is a regular file inside the folder (or the hub cache's blobs)."""
    if not folder.is_dir():
        return
    home = folder.resolve()
    # The hub's cache: models--owner--name/snapshots/<revision>/<file> -> ../../blobs/<hash>.
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    for entry in sorted(folder.iterdir()):
        if entry.suffix not in _USED:
            continue
        try:
            target = entry.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError) as error:
            raise UserError(f"{entry} cannot be opened ({error}): copy or download the folder again") from error
        if stat.S_ISDIR(mode) and not entry.is_symlink():
            continue
        if not stat.S_ISREG(mode):
            raise UserError(f"{entry} is not a regular file: copy or download the folder again")
        if entry.is_symlink() and not (target.is_relative_to(home) or (blobs and target.is_relative_to(blobs))):
            raise UserError(
                f"{entry} is a link that leads out of its folder (to {target}): put the file itself there, or name the "
                f"folder that holds the model's files"
            )


def _weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """(the safetensors files, sorted; name of a tensor -> its file according to the index, {} without an index)."""
    single, index = folder / SINGLE, folder / INDEX
    if index.is_file():
        owners = _read_index(folder)
        files = sorted(set(owners.values()))
        if single.is_file() and files != [single]:
            raise UserError(
                f"{folder} holds {SINGLE} and also {INDEX}, which names other files ({files[0].name}, ...): one of the "
                f"two is left from an earlier save. Delete the one that is not the model."
            )
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{folder} does not have the shard {missing[0]} that {INDEX} names "
                f"({len(missing)} of {len(files)} are missing). Download the folder again."
            )
        return tuple(files), owners
    if single.is_file():
        return (single,), {}
    if pickles := _pickles(folder):
        raise UserError(
            f"{folder} holds its weights as pickle ({pickles[0].name}), which can run code when it is opened, so it "
            f"is not opened. Convert it where you trust it: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new)."
        )
    if (folder / "delta" / "delta.json").is_file():
        raise UserError(
            f"{folder} is the work folder of a training, not a model: its result is the delta {folder / 'delta'}"
        )
    if unlike := _of_a_trainer(folder):
        raise UserError(f"{folder} has a config.json and no {SINGLE}: {unlike}")
    if others := sorted(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has neither {SINGLE} nor {INDEX}, which says that {others[0].name} is a part of the model. "
            f"Download the folder again, or save the model with save_pretrained."
        )
    raise UserError(f"{folder} has a config.json and no {SINGLE}: the weights are missing. Download the folder again.")


def _of_a_trainer(folder: Path) -> str | None:
    """What a trainer left in a folder in place of weights, and how to make a model of it; None if nothing is known."""
    parts = sorted(
        {file.parent for pattern in ("*.distcp", "pytorch_model*/*.distcp") for file in folder.glob(pattern)}
    )
    if parts:
        return f"it holds the parts of a model that FSDP trained. Join them: accelerate merge-weights {parts[0]} NEW"
    if (folder / "zero_to_fp32.py").exists() or any(folder.glob("global_step*")):
        return (
            f"it holds the parts of a model that DeepSpeed trained. Join them (where you trust it): python "
            f"{folder / 'zero_to_fp32.py'} --safe_serialization {folder} NEW, and copy config.json and the tokenizer"
        )
    saved = [place for place in folder.glob("checkpoint-*") if (place / CONFIG).is_file()]
    if saved:
        last = max(saved, key=lambda place: (len(place.name), place.name))
        return f"the models are its {len(saved)} checkpoints. Name one of them, such as {last}"
    return None


def _pickles(folder: Path) -> list[Path]:
    """The pickled files that could be weights, without what trainers keep beside them."""
    found = [file for ending in ("bin", "pt", "pth") for file in sorted(folder.glob(f"*.{ending}"))]
    return [file for file in found if not file.name.startswith(_TRAINERS)]


def _read_index(folder: Path) -> dict[str, Path]:
    """Name of a tensor -> its file according to the index. Every file is named without a path."""
    index = folder / INDEX
    values = read_json(index)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} has no 'weight_map': download the folder again")
    for tensor, name in shards.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not {"/", "\\", "\0"} & set(name)
        if not plain:
            raise UserError(
                f"{index}: weight_map puts '{tensor}' into {name!r}; expected the name of a .safetensors file in the "
                f"same folder. Download the folder again."
            )
    return {tensor: folder / name for tensor, name in shards.items()}


def what_it_is(folder: Path) -> str:
    """An error message that says what a folder without config.json is instead of a model."""
    if not folder.is_dir():
        return f"{folder} is not a folder: name a Hugging Face folder (config.json and safetensors)"
    if (folder / "adapter_config.json").is_file():
        adapter = read_json(folder / "adapter_config.json")
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        return (
            f"{folder} is a PEFT adapter, not a model: name its base{f' ({one_line(base)})' if base else ''} here. "
            f"`skillweave zip --lora` makes a pack of the adapter, Delta.from_lora(folder, base) a delta."
        )
    for name, kind in (("delta.json", "a delta"), ("skillpack.json", "a skillpack"), ("weave.json", "a weave")):
        if (folder / name).is_file():
            taken = " (`skillweave zip --delta` makes a pack of a delta)" if name == "delta.json" else ""
            return f"{folder} is {kind}, not a model: name the base it was made from{taken}"
    if ggufs := sorted(folder.glob("*.gguf")):
        return f"{folder} has no config.json: name the GGUF file itself, {ggufs[0]}"
    return f"{folder} has no config.json: name a Hugging Face folder (config.json and safetensors)"
