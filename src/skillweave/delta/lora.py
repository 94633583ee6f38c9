"""Read a plain LoRA adapter of PEFT as a delta: the change s B A of each W, tensor by tensor.

LoRA (Hu et al., arXiv:2106.09685): s = alpha / r. With rank stabilisation (Kalajdzievski, arXiv:2312.03732):
s = alpha / sqrt(r). Only adapters whose whole effect is W + s B A are read here; :mod:`skillweave.delta.peft_merge`
reads the others.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.names import WRAPPERS, wrapper_in
from skillweave.base.safetensors_io import Spec, TensorFiles, read_headers, spec_bytes, write_stream
from skillweave.delta.adapter_config import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config, why_merged
from skillweave.delta.adapter_names import PREFIX, SAVED, Names, value_for
from skillweave.delta.adapter_numbers import check_finite, check_rank
from skillweave.delta.adapter_targets import other_targets
from skillweave.delta.adapter_whole import settle_whole, without_copies
from skillweave.delta.schema import DeltaCard, TensorEntry, dtype_name
from skillweave.delta.source import TensorSource
from skillweave.delta.stored import check_entries
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.progress import say_once

_FACTORS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
_NAMED = re.compile(r"\.lora_(?:[AB]|embedding_[AB])\.\w+(?:\.weight)?$")
"""The end of a name in a model's ``state_dict``: the name of the adapter (``default``) stands in it."""


@dataclass(frozen=True)
class _Pair:
    """Names of the factors in the file, the scale s, and whether W is stored as the transpose of B A."""

    a: str
    b: str
    scale: float
    transposed: bool


class Adapter(TensorSource):
    """A plain LoRA adapter in its folder: indexing computes the change s B A of a base tensor, in float32.

    Names in ``whole`` are tensors that the adapter holds in full (``modules_to_save``, biases, embeddings that PEFT
    saved beside their factors): indexing gives the tuned tensor itself. Made by :meth:`on` or :meth:`saved`. Raises
    :class:`UserError` for an adapter that is not plain LoRA, and on access for a tensor with NaN or infinity.
    """

    kind = "lora"

    def __init__(self, folder: Path, names: Names, is_transposed: Callable[[str], bool]) -> None:
        self.folder = folder
        self.where = str(folder)
        self.config = read_adapter_config(folder)
        self.file = folder / WEIGHTS_FILE
        if reason := why_merged(self.config):
            raise UserError(f"{folder / CONFIG_FILE}: {reason}: this is more than plain LoRA")
        self._headers = read_headers(self.file)
        files = TensorFiles(dict.fromkeys(self._headers, self.file))
        files.open()  # the tensors are read later, and the folder may be replaced until then
        self._read = files.read
        factors, self._whole_names = _sort_names(without_copies(self._headers, self._read), names, self.file)
        self._pairs = {
            name: _pair(name, parts, self.config, self._headers, is_transposed(name), folder)
            for name, parts in factors.items()
        }
        self._set_specs()

    @classmethod
    def on(cls, folder: Path, base: Checkpoint) -> Adapter:
        """The adapter in ``folder`` as a change of ``base``: names, ties and shapes are settled and checked."""
        adapter = cls(folder, Names.of(base), orientation(base))
        changed = [name.removesuffix(".weight") for name in adapter._pairs]
        adapter._settle_ties(base)
        adapter._set_specs()
        _check_fits(adapter, base)
        if warning := other_targets(adapter.config, changed, base):
            say_once(f"Warning: {adapter.file}: {warning}")
        return adapter

    @classmethod
    def saved(cls, folder: Path, card: DeltaCard) -> Adapter:
        """The adapter of a saved delta, checked to hold the tensors that its card describes."""
        entries = card.entries
        adapter = cls(folder, Names(entries), lambda name: name in entries and entries[name].transposed)
        check_entries(card, {WEIGHTS_FILE: adapter.specs}, folder)
        return adapter

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self._read(self._whole_names[name]) if name in self._whole_names else None
        if name not in self._pairs:
            assert stored is not None
            return check_finite(stored, name, self.file)
        change = self._change(self._pairs[name])
        return check_finite(change if stored is None else stored.float() + change, name, self.file)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return s B and A of a matrix that only the factors change; see :meth:`TensorSource.factors`."""
        pair = self._pairs.get(name)
        if pair is None or name in self._whole_names:
            return None
        left, right = self._read(pair.b).float() * pair.scale, self._read(pair.a).float()
        return check_finite(left, name, self.file), check_finite(right, name, self.file)

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter's tensors at their stored dtypes."""
        return sum(spec_bytes(self._headers[raw]) for raw in self._names_to_save())

    def save(self, folder: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
        """Copy the two files into ``folder``; see :meth:`TensorSource.save`.

        The weights are written again where a tensor of the file is ignored (an embedding equal to the base's) or has
        another name than PEFT gives it on this base.
        """
        shutil.copyfile(self.folder / CONFIG_FILE, folder / CONFIG_FILE)
        names = self._names_to_save()
        if all(raw == name for raw, name in names.items()) and len(names) == len(self._headers):
            shutil.copyfile(self.file, folder / WEIGHTS_FILE)
        else:
            raws = {name: raw for raw, name in names.items()}
            specs = {name: self._headers[raw] for name, raw in raws.items()}
            write_stream(folder / WEIGHTS_FILE, specs, lambda name: self._read(raws[name]))
        hashes = {file: sha256_file(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
        entries = {
            name: TensorEntry(
                stored="whole" if name in self.whole else "lora",
                shape=shape,
                dtype=dtype_name(dtype),
                file=WEIGHTS_FILE,
                transposed=name in self._pairs and self._pairs[name].transposed,
            )
            for name, (shape, dtype) in self.specs.items()
        }
        return hashes, entries

    def _set_specs(self) -> None:
        self.whole = frozenset(self._whole_names)
        self.specs = {name: self._spec(name) for name in sorted(self._pairs.keys() | self._whole_names.keys())}

    def _spec(self, name: str) -> Spec:
        if name not in self._pairs:
            return self._headers[self._whole_names[name]]
        pair = self._pairs[name]
        shape = (self._headers[pair.b][0][0], self._headers[pair.a][0][1])
        return (shape[::-1] if pair.transposed else shape), torch.float32

    def _names_to_save(self) -> dict[str, str]:
        """Name in this file -> the name that PEFT gives it, for every tensor that is a part of the change."""
        names = {}
        for name, pair in self._pairs.items():
            module = name.removesuffix(".weight")
            for raw in (pair.a, pair.b):
                ending = next(ending for ending in _FACTORS if raw.endswith(ending))
                names[raw] = f"{PREFIX}{module}{ending}"
        for name, raw in self._whole_names.items():
            infix = next((part for part in ("base_layer", "modules_to_save") if f".{part}." in raw), None)
            module, _, leaf = name.rpartition(".")
            names[raw] = f"{PREFIX}{module}.{infix}.{leaf}" if infix else f"{PREFIX}{name}"
        return names

    def _change(self, pair: _Pair) -> torch.Tensor:
        change = self._read(pair.b).float() @ self._read(pair.a).float() * pair.scale
        return change.T.contiguous() if pair.transposed else change

    def _settle_ties(self, base: Checkpoint) -> None:
        """Keep one change for both ends of a tie, and drop whole tensors that equal the base's."""
        for far, near in base.tied.items():
            changed = [end for end in (near, far) if end in self._pairs]
            if len(changed) == 2:
                ours, theirs = self._change(self._pairs[near]), self._change(self._pairs[far])
                if ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
                    del self._pairs[far]
                    self._whole_names.pop(far, None)
                    continue
            if changed:
                raise one_end(self.file, changed[0], {far: near, near: far}[changed[0]], base)
        self._whole_names = settle_whole(self._whole_names, self._read, self.config, base, self.file)


def one_end(file: Path, changed: str, other: str, base: Checkpoint) -> UserError:
    """The error for an adapter that changes only one of two tied tensors."""
    return UserError(
        f"{file} changes '{changed}', which {base.where} ties to '{other}': the adapter changes one of the two (or "
        f"both differently), and a delta would change both equally. Untie the base (open it, give '{other}' a copy, "
        f"set tie_word_embeddings=false, save it) and use that as the base, or train without the embeddings."
    )


def orientation(base: Checkpoint) -> Callable[[str], bool]:
    """A function from the name of a matrix to whether ``base`` stores it as (in, out).

    That is the case for transformers' ``Conv1D`` (GPT-2) and for embeddings, whose factors PEFT writes transposed. The
    module's class decides, because PEFT's own flag ``fan_in_fan_out`` is the same for all modules.
    """
    modules = dict(base.skeleton.named_modules(remove_duplicate=False))
    return lambda name: isinstance(modules.get(name.removesuffix(".weight")), Conv1D | torch.nn.Embedding)


def _check_fits(adapter: Adapter, base: Checkpoint) -> None:
    """Raise :class:`UserError` for a tensor of the adapter that ``base`` does not have, or has in another shape."""
    vocabulary = base.vocabulary_names()
    for name, (shape, _) in adapter.specs.items():
        if name not in base:
            wrapper = wrapper_in(name)
            if wrapper is not None:
                raise UserError(
                    f"{adapter.file} changes '{name}', as {WRAPPERS[wrapper]} names it when it wraps a model: save the "
                    f"adapter of the model inside it, or take '{wrapper}.' out of the names of the tensors"
                )
            task = adapter.config.get("task_type")
            more = f" (it was trained for {task})" if task not in (None, "CAUSAL_LM") else ""
            raise UserError(
                f"{adapter.file} changes '{name}', which {base.where} does not have{more}: name the right base"
            )
        expected = base.shape(name)
        added = name in adapter.whole and name in vocabulary and shape[1:] == expected[1:]
        if shape != expected and not added:
            raise UserError(
                f"{adapter.file} changes '{name}' in the shape {shape}; in {base.where} it is {expected}: "
                f"name the base that the adapter was trained on"
            )


def _sort_names(raws: Iterable[str], names: Names, file: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(base tensor -> {"A": name in file, "B": name in file}, base tensor -> name in file of a whole tensor)."""
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for raw in raws:
        name = plain_name(raw)
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        if ending is not None:
            target = f"{names.module(name.removesuffix(ending))}.weight"
            place, part = factors.setdefault(target, {}), _FACTORS[ending]
        elif any(piece.startswith("lora_") for piece in name.split(".")):
            hint = ": save it with PEFT's save_pretrained, which leaves the adapter's name out of the names of tensors"
            raise UserError(
                f"{file}: the tensor '{raw}' is not a part of a plain LoRA adapter{hint if _NAMED.search(name) else ''}"
            )
        else:
            place, part = whole, names.tensor(name)
        if part in place:
            raise UserError(f"{file}: '{place[part]}' and '{raw}' are two names of one tensor: save it again with PEFT")
        place[part] = raw
    return factors, whole


def plain_name(raw: str) -> str:
    """A name in an adapter file without PEFT's prefix and without the names of its wrappers."""
    name = raw.removeprefix(PREFIX).replace(".token_adapter.base_layer.", ".")
    return name.replace(".base_layer.", ".").replace(SAVED, ".")


def _pair(
    name: str,
    parts: Mapping[str, str],
    config: Mapping[str, Any],
    headers: Mapping[str, Spec],
    transposed: bool,
    folder: Path,
) -> _Pair:
    file = folder / WEIGHTS_FILE
    if set(parts) != {"A", "B"}:
        raise UserError(f"{file}: '{name}' has only one of the factors A and B: the adapter is incomplete")
    a, b = headers[parts["A"]][0], headers[parts["B"]][0]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise UserError(f"{file}: the factors of '{name}' are {a} and {b}, expected (r, in) and (out, r)")
    rank = a[0]
    check_rank(rank, name, config, file)
    default = config.get("lora_alpha", 8)
    where = f"{folder / CONFIG_FILE}: alpha_pattern"
    alpha = value_for(name.removesuffix(".weight"), config.get("alpha_pattern"), default, where)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Pair(parts["A"], parts["B"], scale, transposed)
