"""Read the tensors of a causal LM one at a time, from safetensors files or from a model in memory.

Names are those of the model class that ``AutoModelForCausalLM`` gives for the config, by transformers' own rules
(:mod:`skillweave.base.names`). A name that only repeats another tensor is left out and listed in
:attr:`Checkpoint.tied`. Tensors of the files that the class has no place for are listed in :attr:`Checkpoint.ignored`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from skillweave.base.architecture import config_of, skeleton_of
from skillweave.base.folder import CONFIG, ModelFolder, find_model
from skillweave.base.names import NameRule
from skillweave.base.quantised import find_codes
from skillweave.base.safetensors_io import Spec, TensorFiles
from skillweave.errors import UserError
from skillweave.progress import say_once

_LEGACY = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)(\.attention)?\.(masked_)?bias)$")
"""Names of masks and frequencies in older files."""


class _Reader(Protocol):
    @property
    def headers(self) -> Mapping[str, Spec]: ...

    def read(self, name: str) -> torch.Tensor: ...


class Checkpoint:
    """A lazy view of a model's tensors.

    ``source`` is a Hugging Face folder (one safetensors file or several with an index) or a model in memory. From a
    folder, only headers are read until :meth:`tensor` is called, and nothing is kept after it returns. Quantised
    weights are read as the numbers that they stand for (:mod:`skillweave.base.quantised`).

    Attributes:
        config: The transformers config.
        tied: Name left out -> name of the tensor that holds the same values.
        ignored: Names in the files that no part of the model reads.
        missing: Parameters of the class that the files do not fill. Such a folder does not open.
        dequantised: The number of tensors that are stored as codes.
        skeleton: The model itself, or (from a folder) one without weights on the ``meta`` device.
        where: The folder or the model, for messages.
        files: The files of the folder; None in memory.

    Raises :class:`UserError` for a folder without config or safetensors, for one that can be read in two ways, for a
    missing shard, a damaged file, and weights that do not fit the config.
    """

    def __init__(self, source: str | Path | nn.Module | ModelFolder) -> None:
        self._reader: _Reader
        self.files: ModelFolder | None = None
        self.ignored: list[str] = []
        self.missing: list[str] = []
        self.dequantised = 0
        if isinstance(source, nn.Module):
            self.where = f"the {type(source).__name__} in memory"
            self.config: Any = getattr(source, "config", None)
            self.skeleton: Any = source
            memory = _Memory(source)
            self._reader = memory
            self.tied = memory.repeated(_tie_map(source))
            names = {name: name for name in memory.headers if name not in self.tied}
        else:
            self.files = source if isinstance(source, ModelFolder) else find_model(Path(source))
            self.where = str(self.files.path)
            self.config = config_of(self.files.config, self.files.path)
            reader = _Folder(self.files)
            self.dequantised = len(reader.codes)
            self._reader = reader
            self.skeleton = skeleton_of(self.config, self.files)
            rule = NameRule(self.skeleton)
            names, self.ignored = rule.names(reader.headers, self.where)
            self.missing = rule.missing(reader.headers, _tie_map(self.skeleton))
            self._check_shapes(names)
            self.tied = self._settle_ties(names)
        self._raw = {name: names[name] for name in sorted(names)}

    def names(self) -> list[str]:
        """Names of all tensors, sorted; tied duplicates are left out."""
        return list(self._raw)

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._reader.headers[self._at(name)][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor as :meth:`tensor` gives it, without reading it."""
        return self._reader.headers[self._at(name)][1]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as stored: read from its file now, or (in memory) the model's own, detached.

        A name in :attr:`tied` gives the tensor that it repeats.
        """
        return self._reader.read(self._at(name))

    def file_name(self, name: str) -> str:
        """The name for a tensor in files that are newly written, which transformers and other tools know.

        It is the name in this folder's files. A tensor that others are tied to keeps its own name, even if the files
        hold it under the name of a tied one.
        """
        return name if name in self.tied.values() else self._raw[name]

    def _at(self, name: str) -> str:
        return self._raw[self.tied.get(name, name)]

    def vocabulary_names(self) -> set[str]:
        """Names of the tensors whose rows are tokens: input embedding, output head and the head's bias."""
        modules = {self.skeleton.get_input_embeddings(), self.skeleton.get_output_embeddings()} - {None}
        return {
            f"{path}.{part}"
            for path, module in self.skeleton.named_modules(remove_duplicate=False)
            if module in modules
            for part in ("weight", "bias")
        }

    def tell_left_over(self) -> None:
        """Print the tensors of the files that no part of the model reads, with their share of the files' bytes.

        Masks and frequencies of older files are not mentioned: every class computes them today.
        """
        left_over = [name for name in self.ignored if not _LEGACY.search(name)]
        if left_over:
            sizes = {
                name: torch.Size(shape).numel() * dtype.itemsize
                for name, (shape, dtype) in self._reader.headers.items()
            }
            share = sum(sizes[name] for name in left_over) / max(sum(sizes.values()), 1)
            say_once(
                f"{self.where}: no part of the model reads {len(left_over)} tensors of the files, {share:.1%} of their "
                f"bytes ('{left_over[0]}'{', ...' if len(left_over) > 1 else ''}); they are not used"
            )

    def _check_shapes(self, names: Mapping[str, str]) -> None:
        """Raise for a tensor of the files whose shape the class does not expect, and for codes in place of floats."""
        expected = self.skeleton.state_dict()
        for name, raw in names.items():
            shape, dtype = self._reader.headers[raw]
            if 0 in shape:
                raise UserError(
                    f"{self.where}: '{name}' has the shape {shape}, so it holds no numbers: the model was saved before "
                    f"its parts were gathered. Save it again whole."
                )
            if name not in expected:
                continue
            wanted = expected[name]
            if tuple(wanted.shape) != shape:
                raise UserError(
                    f"{self.where}: the weights do not fit config.json: '{name}' has the shape {shape} in the files, "
                    f"and {tuple(wanted.shape)} by {CONFIG}. Download the folder again."
                )
            if wanted.is_floating_point() and not dtype.is_floating_point:
                raise UserError(
                    f"{self.where}: '{name}' is stored as {str(dtype).removeprefix('torch.')}, and the model computes "
                    f"with floating-point numbers: these are codes of a quantised model. Name the unquantised one."
                )

    def _settle_ties(self, names: dict[str, str]) -> dict[str, str]:
        """Remove the names that repeat another tensor from ``names``; return name removed -> name kept.

        transformers ties two tensors only if they agree. If the files hold both with different values, then both are
        kept, here as there. If the files hold only the tied one, it is listed under the name of the tensor that it is
        tied to.
        """
        tied = {}
        for target, source in _tie_map(self.skeleton).items():
            if target in names and source not in names:
                names[source] = names.pop(target)
            elif target in names and not torch.equal(
                self._reader.read(names[source]), self._reader.read(names[target])
            ):
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
        """Name -> name of the tensor whose storage it shares; the config's ties decide which of the two is kept."""
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
    """Tensors in the safetensors files of a folder, by their names there; codes are read as numbers."""

    def __init__(self, files: ModelFolder) -> None:
        self.codes, parts = find_codes(files)
        self._stored = TensorFiles(files.files)
        plain = {name: spec for name, spec in files.headers.items() if name not in parts}
        self.headers: Mapping[str, Spec] = plain | {name: codes.spec for name, codes in self.codes.items()}

    def read(self, name: str) -> torch.Tensor:
        codes = self.codes.get(name)
        return self._stored.read(name) if codes is None else codes.read(self._stored.read)


def _tie_map(model: Any) -> dict[str, str]:
    """Tied name -> the name that it repeats, according to the model class and the config."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    return expand(all_submodels=True) if expand else {}
