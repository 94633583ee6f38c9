"""What training changed: theta - theta_base, tensor by tensor, or the LoRA factors it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from skillweave.artefact import atomic_folder, write_json
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import Base, as_dtype, resolve
from skillweave.base.safetensors_io import Spec, plan_files, read_headers, spec_bytes, write_stream
from skillweave.delta.adapter_config import (
    WEIGHTS_FILE,
    check_adapter_files,
    other_base,
    read_adapter_config,
    why_merged,
)
from skillweave.delta.adapter_source import adapter_folder
from skillweave.delta.adapter_whole import check_token_rows
from skillweave.delta.arithmetic import applied
from skillweave.delta.carry import Carried, changed_files, read_files, save_files
from skillweave.delta.compare import check_rows_agree, compare
from skillweave.delta.lora import Adapter
from skillweave.delta.peft_merge import Merged
from skillweave.delta.schema import AGAIN, DELTA_FILE, BaseRef, DeltaCard, TensorEntry, dtype_name, read_card
from skillweave.delta.stored import StoredTensors, check_entries, weight_files
from skillweave.delta.voice import carried_generation, carried_tokenizer
from skillweave.errors import UserError, nearest
from skillweave.files.disk import check_room
from skillweave.files.folder import Folder
from skillweave.files.hashes import shortened
from skillweave.progress import bar, say_once


class Delta:
    """A change of a base model.

    ``tensors`` maps names of base tensors to their change, or, for the names in ``whole``, to the tuned tensor itself
    (added tokens, integers). For the names in ``rows`` the leading so many rows are a difference from the base's, and
    those behind are rows of added tokens, as tuned. It may be a plain dict, or compute and read on access; ``specs``
    then gives shapes and dtypes without doing so. ``carried`` are files (tokenizer, generation config) that replace
    the base's in a written model; :meth:`apply` takes them too.

    ``kind`` is ``"lora"`` for a PEFT adapter, else ``"full"``. ``provenance`` is free JSON, kept with the delta.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        base_fingerprint: str,
        base_ref: str = "the base",
        whole: Collection[str] = (),
        rows: Mapping[str, int] | None = None,
        specs: Mapping[str, Spec] | None = None,
        provenance: Mapping[str, Any] | None = None,
        carried: Carried | None = None,
    ) -> None:
        self._tensors = tensors
        self._whole = frozenset(whole)
        self._rows = dict(rows or {})
        self._specs = dict(specs) if specs is not None else {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
        self.base_fingerprint = base_fingerprint
        self.base_ref = base_ref
        self.provenance = dict(provenance or {})
        self.carried = carried or Carried()
        if unknown := (self._whole | set(self._rows)) - set(self._specs):
            raise ValueError(f"whole or rows names no tensor of the delta: {sorted(unknown)}")

    # -- making --------------------------------------------------------------------------------------------------

    @classmethod
    def between(
        cls,
        base: str | Path | Base | nn.Module,
        tuned: str | Path | Base | nn.Module,
        *,
        dtype: str | torch.dtype | None = None,
    ) -> Delta:
        """The difference of a tuned model and its base, each a reference, a folder, an open base or a model.

        A :class:`Base` given as ``base`` stands for its files; given as ``tuned``, for its model in memory.
        Tensors are compared now and computed when they are read, so keep both sides until the delta is saved. Peak
        memory is that of a few copies of the largest tensor. Unchanged tensors are left out.

        Differences are computed in float32 and stored in ``dtype``: by default the narrower of the two sides'
        dtypes, so bfloat16 on a bfloat16 base. How near that brings :meth:`apply` to the tuned weights is said at
        :func:`skillweave.delta.arithmetic.applied`; "float32" makes it exact for bfloat16 weights that did not
        shrink by 2**16 or more. A tuned folder's tokenizer and generation config are carried along where they differ.
        """
        ours, mark, ref = _as_base(base)
        theirs, name = _as_tuned(tuned)
        found = compare(ours, theirs, as_dtype(dtype))
        folders = [Path(side.where) for side in (ours, theirs)]
        carried = changed_files(*folders) if all(folder.is_dir() for folder in folders) else None
        return cls(
            found,
            base_fingerprint=mark,
            base_ref=ref,
            whole=found.whole,
            specs=found.specs,
            provenance={"tuned": name},
            carried=carried,
        )

    @classmethod
    def from_lora(
        cls,
        adapter: str | Path,
        base: str | Path | Base | nn.Module,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> Delta:
        """A PEFT adapter as a delta on ``base``: a folder, or a hub id ``owner/name``, with its revision and subfolder.

        Plain LoRA keeps its factors and is exact. Every other kind that PEFT can merge is merged, tensor by tensor, as
        the tensors are read (:class:`skillweave.delta.peft_merge.Merged`), and a line on the screen says why. An
        adapter that names another base is warned about; the warning stays in ``provenance``.
        Raises :class:`UserError` where the adapter does not fit the base, or changes no weights.
        """
        folder = adapter_folder(adapter, revision=revision, subfolder=subfolder)
        check_adapter_files(folder)
        config = read_adapter_config(folder)
        ours, mark, ref = _as_base(base)
        place = Path(ours.where) if Path(ours.where).is_dir() else None
        provenance: dict[str, Any] = {"adapter": str(adapter), "peft_type": config["peft_type"]}
        provenance |= {key: value for key, value in (("revision", revision), ("subfolder", subfolder)) if value}
        if warning := other_base(config, ref, place) if place else None:
            say_once(f"Warning: {warning}")
            provenance["warning"] = warning
        carried = changed_files(place, folder) if place else None
        belongs = BaseRef(ref=ref, fingerprint=mark)
        if (reason := why_merged(config)) is not None:
            say_once(f"The adapter {adapter} is merged into its base tensor by tensor: {reason}.")
            provenance["merged"] = reason
        tensors = Adapter.on(folder, ours) if reason is None else Merged(folder, config, ours)
        check_token_rows(tensors.specs, ours, folder / WEIGHTS_FILE)
        return cls._of_adapter(tensors, belongs, provenance, carried)

    @classmethod
    def _of_adapter(
        cls, adapter: Adapter | Merged, base: BaseRef, provenance: Mapping[str, Any], carried: Carried | None
    ) -> Delta:
        return cls(
            adapter,
            base_fingerprint=base.fingerprint,
            base_ref=base.ref,
            whole=adapter.whole,
            specs=adapter.specs,
            provenance=provenance,
            carried=carried,
        )

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> Literal["full", "lora"]:
        """``"lora"`` or ``"full"``."""
        return "lora" if isinstance(self._tensors, Adapter) else "full"

    def names(self) -> list[str]:
        """Names of the changed tensors, sorted."""
        return sorted(self._specs)

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def tensor(self, name: str) -> torch.Tensor:
        """``theta - theta_base`` of one tensor (of a LoRA: s B A in float32), or the tuned one where :meth:`whole`."""
        if name not in self:
            raise UserError(f"the delta does not change '{name}'; {nearest(name, self.names())}")
        return self._tensors[name]

    def whole(self, name: str) -> bool:
        """Whether :meth:`tensor` gives the tuned tensor itself instead of a difference."""
        return name in self._whole

    def shared_rows(self, name: str) -> int | None:
        """How many leading rows of :meth:`tensor` are a difference, the others being tuned; None: all or none are."""
        return self._rows.get(name)

    def laid_on(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The tuned tensor, in the dtype and on the device of ``base``, the base's tensor (or one with its rows)."""
        change, shared = self.tensor(name), self.shared_rows(name)
        if self.whole(name):
            return change.to(base)
        if shared is None:
            return applied(base, change)
        return torch.cat([applied(base[:shared], change[:shared]), change[shared:].to(base)])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._specs[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor as :meth:`tensor` gives it, without reading it."""
        return self._specs[name][1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored (the factors, for a LoRA), without headers and JSON."""
        if isinstance(self._tensors, Adapter):
            return self._tensors.nbytes
        return sum(spec_bytes(spec) for spec in self._specs.values())

    @property
    def bf16_nbytes(self) -> int:
        """2 bytes for every parameter of every changed tensor: the size that ratios are measured against."""
        return sum(2 * torch.Size(shape).numel() for shape, _ in self._specs.values())

    def vocabulary_size(self, base: Checkpoint) -> int | None:
        """Rows of the input embedding after this delta, where it changes their number on ``base``."""
        for name in base.vocabulary_names() & (self._whole | set(self._rows)):
            if self.shape(name)[0] != base.shape(name)[0]:
                return self.shape(name)[0]
        return None

    # -- applying ------------------------------------------------------------------------------------------------

    def check_base(self, found: str, ref: str = "this base") -> None:
        """Raise :class:`UserError` unless the fingerprint ``found`` is that of the base this delta was made on."""
        if found != self.base_fingerprint:
            wanted, other = shortened(self.base_fingerprint, found)
            raise UserError(
                f"the delta belongs on {self.base_ref} ({wanted}), not on {ref} ({other}). "
                "Open the base it names, or take the delta anew on this one."
            )

    def check_fits(self, base: Checkpoint) -> None:
        """Raise :class:`UserError`, by name, for a tensor that ``base`` does not have in the delta's shape."""
        vocabulary = base.vocabulary_names()
        rows = {name: base.shape(name)[0] for name in base.names() if name in vocabulary}
        for name, (shape, _) in self._specs.items():
            if name not in base:
                raise UserError(
                    f"the delta changes '{name}', which {base.where} does not have under that name. If transformers "
                    f"fuses such tensors while loading, write the tuned model as files (skillweave unzip) and open it."
                )
            expected = base.shape(name)
            shared = self._rows.get(name)
            resized = name in vocabulary and shape[1:] == expected[1:] and (self.whole(name) or shared is not None)
            if (shape != expected and not resized) or shared not in (None, min(shape[0], expected[0])):
                raise UserError(f"the delta changes '{name}' in the shape {shape}; {base.where} has {expected}")
            if resized:
                rows[name] = shape[0]
        check_rows_agree(rows, f"{base.where} with the delta")

    def apply(self, base: Base, *, in_place: bool = False) -> Base:
        """The tuned model: a copy of ``base`` (or its own model, ``in_place``) with every change added.

        The result's fingerprint is that of the model in memory. Raises :class:`UserError` for another base than the
        delta's, before anything is changed.
        """
        self.check_base(base.fingerprint, base.ref)
        self.check_fits(Checkpoint(base.model))
        model = base.model if in_place else copy.deepcopy(base.model)
        with bar("applying", len(self._specs)) as advance:
            self.add_to(model, advance)
        tokenizer, generation = carried_tokenizer(self.carried, base), carried_generation(self.carried)
        if generation is not None:
            model.generation_config = generation
        return Base(model, tokenizer, fingerprint(model), base.ref, base.path, in_memory=True)

    @torch.no_grad()
    def add_to(self, model: Any, advance: Callable[[], None] = lambda: None) -> None:
        """Add every change to a model that is known to be the base, in any dtype; ``advance`` is called at each.

        Sums are computed in float32 and rounded once to the model's dtype.
        """
        if (rows := self.vocabulary_size(Checkpoint(model))) is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        state: dict[str, Any] = model.state_dict()
        for name in self.names():
            state[name].copy_(self.laid_on(name, state[name]))
            advance()

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the delta into ``folder`` (replaced whole, atomically) and return it. Streams tensor by tensor.

        A full delta is ``delta.json`` + ``delta.safetensors``; a LoRA is exactly the two files that PEFT, vLLM and
        LoRAX load, + ``delta.json``. Carried files lie in a subfolder, out of their way.
        """
        folder = Path(folder)
        check_room(folder, self.nbytes, "the delta")
        with atomic_folder(folder) as temporary:
            if isinstance(self._tensors, Adapter):
                hashes = self._tensors.save(temporary)
                where = dict.fromkeys(self._tensors, WEIGHTS_FILE)
            else:
                hashes, where = self._write_tensors(temporary)
            hashes |= save_files(self.carried, temporary)
            card = DeltaCard(
                kind=self.kind,
                base=BaseRef(ref=self.base_ref, fingerprint=self.base_fingerprint),
                entries={name: self._entry(name, where[name]) for name in self.names()},
                files=hashes,
                from_base=dict(self.carried.from_base),
                provenance=self.provenance,
            )
            write_json(temporary / DELTA_FILE, card.to_values())
        return folder

    def _write_tensors(self, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
        check_room(folder, sum(spec_bytes(spec) for spec in self._specs.values()), "the delta")
        files = plan_files(self._specs, "delta")
        hashes = {}
        with bar("writing the delta", len(self._specs)) as advance:

            def read(name: str) -> torch.Tensor:
                advance()
                return self.tensor(name)

            for file, names in files.items():
                hashes[file] = write_stream(folder / file, {name: self._specs[name] for name in names}, read)
        return hashes, {name: file for file, names in files.items() for name in names}

    def _entry(self, name: str, file: str) -> TensorEntry:
        shape, dtype = self._specs[name]
        adapter = self._tensors if isinstance(self._tensors, Adapter) else None
        return TensorEntry(
            stored="whole"
            if self.whole(name)
            else "lora"
            if adapter
            else "rows"
            if name in self._rows
            else "difference",
            shared=self._rows.get(name),
            shape=shape,
            dtype=dtype_name(dtype),
            file=file,
            transposed=adapter.transposed.get(name, False) if adapter else False,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Delta:
        """Open a saved delta; tensors are read when asked for.

        Every file is checked against its hash first. Raises :class:`UserError` that names the file or the tensor
        for what is missing, damaged or of a newer schema.
        """
        folder = Path(folder)
        card = read_card(folder)
        reader = Folder(folder, DELTA_FILE, AGAIN)
        carried = read_files(reader, card.files, card.from_base)
        paths = reader.verified(weight_files(card, folder))
        if card.kind == "lora":
            adapter = Adapter.saved(folder, card.entries)
            check_entries(card, {WEIGHTS_FILE: adapter.specs}, folder)
            return cls._of_adapter(adapter, card.base, card.provenance, carried)
        stored = StoredTensors(folder, {name: entry.file for name, entry in card.entries.items()})
        check_entries(card, {file: read_headers(path) for file, path in paths.items()}, folder)
        return cls(
            stored,
            base_fingerprint=card.base.fingerprint,
            base_ref=card.base.ref,
            whole={name for name, entry in card.entries.items() if entry.stored == "whole"},
            rows={name: entry.shared for name, entry in card.entries.items() if entry.shared is not None},
            specs={name: (entry.shape, getattr(torch, entry.dtype)) for name, entry in card.entries.items()},
            provenance=card.provenance,
            carried=carried,
        )


def _as_base(side: str | Path | Base | nn.Module) -> tuple[Checkpoint, str, str]:
    """(tensors, fingerprint, name) of the base side."""
    if isinstance(side, Base):
        return side.checkpoint, side.fingerprint, side.ref
    if isinstance(side, nn.Module):
        return Checkpoint(side), fingerprint(side), "a model in memory"
    folder = resolve(side)
    return Checkpoint(folder), fingerprint(folder), str(side)


def _as_tuned(side: str | Path | Base | nn.Module) -> tuple[Checkpoint, str]:
    """(tensors, name) of the tuned side."""
    model = side.model if isinstance(side, Base) else side
    if isinstance(model, nn.Module):
        if hasattr(model, "peft_config"):
            raise UserError(
                "the tuned model is a PEFT model: save its adapter (save_pretrained) and use Delta.from_lora(folder, "
                "base), or merge it first (merge_and_unload)"
            )
        return Checkpoint(model), "a model in memory"
    return Checkpoint(resolve(model)), str(model)
