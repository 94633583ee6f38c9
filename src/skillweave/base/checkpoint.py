"""Read the tensors of a causal LM one at a time, from safetensors files or from a model in memory.

Names are those of the model class that ``AutoModelForCausalLM`` gives for the config, whichever of the customary
forms the files use (with or without the base model's prefix; either end of a tie). A name that merely repeats another
tensor is left out and listed in :attr:`Checkpoint.tied`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from skillweave.errors import UserError
from skillweave.files.read import read_json, regular_file

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Buffers that old Llama-like checkpoints saved and no model class reads any more.
_STALE = r"(^|\.)rotary_emb\.inv_freq$"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Checkpoint:
    """A lazy view of a model's tensors.

    ``source`` is a Hugging Face folder (one safetensors file or several with an index) or a model in memory.
    From a folder, only headers are read until :meth:`tensor` is called, and nothing is kept after it returns.

    Attributes: ``config`` (the transformers config), ``tied`` (name left out -> name that holds the same values),
    ``skeleton`` (the model itself, or one without weights on the ``meta`` device), ``where`` (for messages).

    Raises :class:`UserError` for a folder without config or safetensors, a missing shard and a damaged file.
    """

    def __init__(self, source: str | Path | nn.Module) -> None:
        self._reader: _Memory | _Folder
        if isinstance(source, nn.Module):
            self.where = f"the {type(source).__name__} in memory"
            self.config: Any = getattr(source, "config", None)
            self.skeleton: Any = source
            self._reader = _Memory(source)
            self.tied = self._reader.repeated(_tie_map(source))
            names = {name: name for name in self._reader.headers if name not in self.tied}
        else:
            folder = Path(source)
            self.where = str(folder)
            self.config = read_config_json(folder)
            self.skeleton = _skeleton(self.config, folder)
            self._reader = _Folder(folder)
            names = _canonical(self._reader.headers, self.skeleton)
            self.tied = self._settle_ties(names)
        self._raw = {name: names[name] for name in sorted(names)}

    def names(self) -> list[str]:
        """Names of all tensors, sorted; tied duplicates are left out."""
        return list(self._raw)

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._reader.headers[self._raw[name]][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor as stored, without reading it."""
        return self._reader.headers[self._raw[name]][1]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as stored: read from its file now, or (in memory) the model's own, detached."""
        return self._reader.read(self._raw[name])

    def vocabulary_names(self) -> set[str]:
        """Names of the tensors whose rows are tokens: input embedding, output head, the head's bias."""
        modules = {self.skeleton.get_input_embeddings(), self.skeleton.get_output_embeddings()} - {None}
        return {
            f"{path}.{part}"
            for path, module in self.skeleton.named_modules(remove_duplicate=False)
            if module in modules
            for part in ("weight", "bias")
        }

    def _settle_ties(self, names: dict[str, str]) -> dict[str, str]:
        """Take the repeated names out of ``names`` and return them.

        transformers ties only what agrees: where a file holds both ends with unlike values, it keeps both, and so
        do we. Where it holds only the far end, that tensor goes by the name of the near one.
        """
        tied = {}
        for target, source in _tie_map(self.skeleton).items():
            if target in names and source not in names:
                names[source] = names.pop(target)
            elif target in names:
                near, far = self._reader.read(names[source]), self._reader.read(names[target])
                if not torch.equal(near, far):
                    continue
            names.pop(target, None)
            if source in names:
                tied[target] = source
        return tied


class _Memory:
    """Tensors of a model in memory, by the names of its ``state_dict``."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        for name, tensor in self.tensors.items():
            if tensor.is_meta:
                raise UserError(f"the tensor '{name}' of the model has no values (meta device): load the weights first")
        self.headers = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def repeated(self, ties: Mapping[str, str]) -> dict[str, str]:
        """Names that share another's storage -> that other; the config's own ties say which of them is kept."""
        holders: dict[tuple, str] = {}
        repeats = {}
        for name in sorted(self.tensors, key=lambda name: (name in ties, name)):
            tensor = self.tensors[name]
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.numel() and place in holders:
                repeats[name] = holders[place]
            else:
                holders[place] = name
        return repeats


class _Folder:
    """Tensors in the safetensors files of a folder, by the names in the files."""

    def __init__(self, folder: Path) -> None:
        self.headers: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.files: dict[str, Path] = {}
        for file in weight_files(folder):
            headers = read_headers(file)
            self.headers |= headers
            self.files |= dict.fromkeys(headers, file)

    def read(self, name: str) -> torch.Tensor:
        # A handle kept open would keep every page it touched mapped: memory would grow to the size of the file.
        with open_safetensors(self.files[name]) as handle:
            return handle.get_tensor(name)


def open_safetensors(file: Path) -> Any:
    """``safe_open`` for torch, where a missing or damaged file is a :class:`UserError` that names it."""
    try:
        return safe_open(regular_file(file, "a folder that is complete, or copy this one again"), framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): copy or download it again") from error


def read_headers(file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape, dtype) of every tensor in a safetensors file; no values are read."""
    headers = {}
    with open_safetensors(file) as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise UserError(f"{file}: the tensor '{name}' has the type {part.get_dtype()}, which is not read here")
            headers[name] = (tuple(part.get_shape()), _DTYPES[part.get_dtype()])
    return headers


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, sorted; every one of them exists."""
    index = folder / _INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index} has no 'weight_map': download the folder again")
        files = [folder / name for name in sorted(set(shards.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks the shard {missing[0]} that {_INDEX} names "
                f"({len(missing)} of {len(files)} are missing). Download the folder again."
            )
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if pickles := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        raise UserError(
            f"{folder} holds its weights as pickle ({pickles[0].name}), which can run code when it is opened, so we do "
            f"not. Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new)."
        )
    raise UserError(f"{folder} has a config.json and no {_SINGLE}: the weights are missing. Download the folder again.")


def read_config_json(folder: Path) -> Any:
    """The transformers config of a folder; :class:`UserError` where there is none or no known one."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(_what_it_is(folder))
    architecture = read_json(folder / "config.json").get("model_type", "(none named)")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / 'config.json'}: transformers does not open the architecture '{architecture}'. "
            f"Code that comes with a checkpoint is never run. ({str(error).splitlines()[0]})"
        ) from error


def _what_it_is(folder: Path) -> str:
    """Say what a folder without config.json is instead of a model."""
    if not folder.is_dir():
        return f"{folder} is not a folder: name a Hugging Face folder (config.json and safetensors)"
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"{folder} is a PEFT adapter, not a model: name its base ({base}) here, "
            f"and open the adapter with Delta.from_lora(folder, base)"
        )
    for name, kind in (("delta.json", "a delta"), ("skillpack.json", "a skillpack")):
        if (folder / name).is_file():
            return f"{folder} is {kind}, not a model: name the base it was made from"
    if ggufs := sorted(folder.glob("*.gguf")):
        return f"{folder} has no config.json: name the GGUF file itself, {ggufs[0]}"
    return f"{folder} has no config.json: name a Hugging Face folder (config.json and safetensors)"


def _skeleton(config: Any, folder: Path) -> Any:
    """The model class of a config without weights: its names, its ties and its kinds of layers."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UserError(
            f"{folder}: '{config.model_type}' is not a causal language model that transformers knows"
        ) from error


def _tie_map(model: Any) -> dict[str, str]:
    """Tied name -> the name it repeats, as the model class and the config say."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    return expand(all_submodels=True) if expand else {}


def _canonical(raw: Mapping[str, Any], skeleton: Any) -> dict[str, str]:
    """Name in the model class -> name in the files; leftovers that the class ignores are dropped."""
    known = set(skeleton.state_dict())
    prefix = skeleton.base_model_prefix
    ignored = [*(skeleton._keys_to_ignore_on_load_unexpected or ()), _STALE]
    names = {}
    for name in raw:
        if name not in known and f"{prefix}.{name}" in known:
            names[f"{prefix}.{name}"] = name
        elif name in known or not any(re.search(pattern, name) for pattern in ignored):
            names[name] = name
    return names
