"""Fill transformers' model class with the tensors of a checkpoint, so that what is hashed is what answers.

transformers gets no folder to look into: it gets the config and the tensors. What it then says it made of them is
checked, and so are the values that it holds.
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


class _Lazy:
    """One tensor of the checkpoint, read when transformers indexes it; keeps what tells its values from others."""

    def __init__(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> None:
        self._checkpoint, self._name, self._dtype = checkpoint, name, dtype
        self.mark: tuple[int, list[int]] | None = None

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self._checkpoint.tensor(self._name)
        self.mark = _mark(tensor.to(self._dtype) if tensor.is_floating_point() else tensor)
        return tensor[index]

    def is_held_by(self, held: torch.Tensor) -> bool:
        """Whether ``held`` is this tensor, rounded to the dtype of ``held``."""
        if held.dtype is self._dtype or not held.is_floating_point():
            return _mark(held) == self.mark
        return torch.equal(held, self._checkpoint.tensor(self._name).to(held.dtype))


def load_model(
    source: str | Path | Checkpoint,
    dtype: torch.dtype | None = None,
    *,
    generation: Path | None = None,
) -> Any:
    """The causal LM of a Hugging Face folder on the CPU, in eval mode, with the tensors that its checkpoint names.

    ``dtype`` is that of the weights; None is the config's, or that of most of the files. ``generation`` is the folder
    whose ``generation_config.json`` counts (None: the model's own).

    Raises :class:`UserError`, by name, where a tensor of the model is not in the files, or one of the files is not in
    the model.
    """
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
    assert checkpoint.files is not None, "a model in memory is not loaded"
    folder = checkpoint.files.path
    if checkpoint.dequantised:
        say_once(f"{folder}: {checkpoint.dequantised} quantised tensors are read as plain numbers")
    # Before anything is built: transformers would fill the memory with random numbers for what is missing.
    _check_missing(checkpoint.missing, folder)
    checkpoint.tell_left_over()
    wanted = dtype or stored_dtype(checkpoint)
    lazy = {name: _Lazy(checkpoint, name, wanted) for name in checkpoint.names()}
    skeleton = checkpoint.skeleton
    given = {checkpoint.file_name(name): one for name, one in lazy.items()}
    try:
        model, report = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=given,
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
    _put_right(model, lazy, checkpoint)
    for held in (model, model.config):
        held.name_or_path = str(folder)
    return model


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that the config names, else the one that most numbers of the checkpoint are stored in."""
    said = getattr(checkpoint.config, "dtype", None)
    if said in _COMPUTED:
        return said
    counts: Counter[torch.dtype] = Counter()
    for name in checkpoint.names():
        if checkpoint.dtype(name) in _COMPUTED:
            counts[checkpoint.dtype(name)] += torch.Size(checkpoint.shape(name)).numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def _check_missing(missing: list[str], folder: Path) -> None:
    if missing:
        raise UserError(
            f"{folder}: the weights lack the tensor '{missing[0]}' that {CONFIG} asks for "
            f"({len(missing)} in all). Download the folder again."
        )


def _check_report(report: dict[str, Any], folder: Path) -> None:
    """Raise for what transformers says it could not place, or had to make up."""
    _check_missing(sorted(report["missing_keys"]), folder)
    if mismatched := sorted(report.get("mismatched_keys") or []):
        raise UserError(
            f"{folder}: the weights do not fit config.json: '{mismatched[0][0]}' is {tuple(mismatched[0][1])} in the "
            f"files and {tuple(mismatched[0][2])} in the model. Download the folder again."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise UserError(
            f"{folder}: transformers has no place for the tensor '{unexpected[0]}' ({len(unexpected)} in all), though "
            f"its name is one of the architecture. Save the model again with save_pretrained."
        )


@torch.no_grad()
def _put_right(model: Any, lazy: dict[str, _Lazy], checkpoint: Checkpoint) -> None:
    """Put the files' values back where the model holds others; raise for a tensor that was never taken.

    Some classes write into their weights once they are loaded (Youtu sets the padding token's row to zero). Tensors
    that transformers puts together or cuts up have no counterpart by name; that they were taken is checked.
    """
    state = model.state_dict()
    for name, one in lazy.items():
        if one.mark is None:
            raise UserError(
                f"{checkpoint.where}: transformers left out the tensor '{name}' without a word. Upgrade transformers."
            )
        held = state.get(name)
        if held is not None and not one.is_held_by(held):
            say_once(f"{checkpoint.where}: transformers changed '{name}' while loading; the files' values are used")
            held.copy_(checkpoint.tensor(name))


def _mark(tensor: torch.Tensor) -> tuple[int, list[int]]:
    """(the sum of a tensor's values as integers of the same bits, a few of its values)."""
    flat = tensor.detach().reshape(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.dtype.itemsize])
    return int(bits.sum(dtype=torch.int64)), bits[:: max(1, bits.numel() // _SAMPLES)].tolist()
