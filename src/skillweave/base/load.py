"""Fill transformers' model class with the tensors of a checkpoint, so that the model that answers is what was hashed.

transformers gets the config and the tensors, and no folder that it could search. Its report of what it loaded is
checked, and so are the values that the model holds afterwards.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.defaults import generation_config_at
from skillweave.base.folder import CONFIG
from skillweave.errors import UserError
from skillweave.progress import say_once

_SAMPLES = 256
_COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _LazyTensor:
    """One tensor of the checkpoint, read when transformers indexes it. A digest of its values is kept."""

    def __init__(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> None:
        self._checkpoint, self._name, self._dtype = checkpoint, name, dtype
        self.digest: tuple[int, list[int]] | None = None

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self._checkpoint.tensor(self._name)
        self.digest = _digest(tensor.to(self._dtype) if tensor.is_floating_point() else tensor)
        return tensor[index]

    def equals(self, loaded: torch.Tensor) -> bool:
        """Whether ``loaded`` is this tensor, rounded to the dtype of ``loaded``."""
        if loaded.dtype is self._dtype or not loaded.is_floating_point():
            return _digest(loaded) == self.digest
        return torch.equal(loaded, self._checkpoint.tensor(self._name).to(loaded.dtype))


def load_model(
    source: str | Path | Checkpoint,
    dtype: torch.dtype | None = None,
    *,
    generation: Path | None = None,
) -> Any:
    """The causal LM of a Hugging Face folder on the CPU, in eval mode, with the tensors that its checkpoint names.

    Args:
        source: A folder, or its open checkpoint.
        dtype: The dtype of the weights. None is the config's dtype, or that of most numbers in the files.
        generation: The folder whose ``generation_config.json`` is used. None is the model's own.

    Raises :class:`UserError`, which names the tensor, if a tensor of the model is not in the files, or one of the files
    is not in the model.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    assert checkpoint.files is not None, "a model in memory needs no loading"
    folder = checkpoint.files.path
    if checkpoint.dequantised:
        say_once(f"{folder}: {checkpoint.dequantised} quantised tensors are read as plain numbers")
    # Checked first: transformers would fill missing tensors with random numbers.
    _check_missing(checkpoint.missing, folder)
    checkpoint.tell_left_over()
    wanted = dtype or stored_dtype(checkpoint)
    lazy = {name: _LazyTensor(checkpoint, name, wanted) for name in checkpoint.names()}
    skeleton = checkpoint.skeleton
    state_dict = {checkpoint.file_name(name): tensor for name, tensor in lazy.items()}
    try:
        model, report = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=state_dict,
            dtype=wanted,
            generation_config=generation_config_at(generation or folder),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (RuntimeError, ValueError, ImportError, TypeError) as error:
        raise UserError(
            f"{folder}: the weights do not fit {CONFIG}, or transformers cannot load them here "
            f"({' '.join(str(error).split())[:500]}). Download the folder again."
        ) from error
    _check_report(report, folder)
    _restore_values(model, lazy, checkpoint)
    for named in (model, model.config):
        named.name_or_path = str(folder)
    return model


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that the config names, or else that of most numbers in the checkpoint."""
    named = getattr(checkpoint.config, "dtype", None)
    if named in _COMPUTED:
        return named
    counts: Counter[torch.dtype] = Counter()
    for name in checkpoint.names():
        if checkpoint.dtype(name) in _COMPUTED:
            counts[checkpoint.dtype(name)] += torch.Size(checkpoint.shape(name)).numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def _check_missing(missing: list[str], folder: Path) -> None:
    if missing:
        raise UserError(
            f"{folder}: the weights do not have the tensor '{missing[0]}' that {CONFIG} asks for "
            f"({len(missing)} in all). Download the folder again."
        )


def _check_report(report: dict[str, Any], folder: Path) -> None:
    """Raise for tensors that transformers reports as missing, mismatched or without a place."""
    _check_missing(sorted(report["missing_keys"]), folder)
    if mismatched := sorted(report.get("mismatched_keys") or []):
        raise UserError(
            f"{folder}: the weights do not fit config.json: '{mismatched[0][0]}' is {tuple(mismatched[0][1])} in the "
            f"files and {tuple(mismatched[0][2])} in the model. Download the folder again."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise UserError(
            f"{folder}: transformers has no place for the tensor '{unexpected[0]}' ({len(unexpected)} in all), "
            f"although its name belongs to the architecture. Save the model again with save_pretrained."
        )


@torch.no_grad()
def _restore_values(model: Any, lazy: dict[str, _LazyTensor], checkpoint: Checkpoint) -> None:
    """Restore the files' values where the model holds others; raise for a tensor that was never read.

    Some classes write into their weights after loading (Youtu sets the padding token's row to zero). Tensors that
    transformers joins or splits have no counterpart by name; for these only the reading is checked.
    """
    state = model.state_dict()
    for name, tensor in lazy.items():
        if tensor.digest is None:
            raise UserError(
                f"{checkpoint.where}: transformers left out the tensor '{name}' silently. Upgrade transformers."
            )
        loaded = state.get(name)
        if loaded is not None and not tensor.equals(loaded):
            say_once(f"{checkpoint.where}: transformers changed '{name}' while loading; the files' values are used")
            loaded.copy_(checkpoint.tensor(name))


def _digest(tensor: torch.Tensor) -> tuple[int, list[int]]:
    """(sum of a tensor's values, a few of its values), both as integers with the same bits."""
    flat = tensor.detach().reshape(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.dtype.itemsize])
    return int(bits.sum(dtype=torch.int64)), bits[:: max(1, bits.numel() // _SAMPLES)].tolist()
