"""What training changed: theta - theta_base, tensor by tensor, or the LoRA factors it is made of."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from skillweave.base.checkpoint import Checkpoint, open_safetensors, read_headers
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import Base, as_dtype, open_tokenizer, resolve
from skillweave.delta.arithmetic import applied
from skillweave.delta.carry import TOKENIZER_FILES, changed_files
from skillweave.delta.compare import compare
from skillweave.delta.lora import CONFIG_FILE, WEIGHTS_FILE, Adapter, check_fits, orientation
from skillweave.delta.schema import DELTA_FILE, BaseRef, DeltaCard, TensorEntry, dtype_name, read_card
from skillweave.delta.stream import Spec, plan_files, spec_bytes, write_stream
from skillweave.errors import UserError, nearest
from skillweave.files.disk import check_room
from skillweave.files.hashes import sha256_file
from skillweave.files.write import atomic_folder, write_json
from skillweave.progress import bar

_CARRIED = "files"  # subfolder of a delta folder


class Delta:
    """A change of a base model.

    ``tensors`` maps names of base tensors to their change, or, for the names in ``whole``, to the tuned tensor itself
    (added tokens, integers). It may be a plain dict, or compute and read on access; ``specs`` then gives shapes
    and dtypes without doing so. ``carried`` are files (tokenizer, generation config) that replace the base's
    in a written model; :meth:`apply` takes the tokenizer.

    ``kind`` is ``"lora"`` for a PEFT adapter, else ``"full"``. ``provenance`` is free JSON, kept with the delta.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        base_fingerprint: str,
        base_ref: str = "the base",
        whole: Collection[str] = (),
        specs: Mapping[str, Spec] | None = None,
        provenance: Mapping[str, Any] | None = None,
        carried: Iterable[Path] = (),
    ) -> None:
        self._tensors = tensors
        self._whole = frozenset(whole)
        self._specs = dict(specs) if specs is not None else {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
        self.base_fingerprint = base_fingerprint
        self.base_ref = base_ref
        self.provenance = dict(provenance or {})
        self.carried = list(carried)
        if unknown := self._whole - set(self._specs):
            raise ValueError(f"whole names no tensor of the delta: {sorted(unknown)}")

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
        carried = changed_files(*folders) if all(folder.is_dir() for folder in folders) else []
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
    def from_lora(cls, folder: str | Path, base: str | Path | Base | nn.Module) -> Delta:
        """A PEFT adapter folder as a delta on ``base``. Raises :class:`UserError` where it is no plain LoRA of it."""
        folder = Path(folder)
        ours, mark, ref = _as_base(base)
        _check_adapter_files(folder)
        adapter = Adapter(folder, orientation(ours))
        check_fits(adapter, ours)
        carried = changed_files(Path(ours.where), folder) if Path(ours.where).is_dir() else []
        return cls._of_adapter(adapter, BaseRef(ref=ref, fingerprint=mark), {"adapter": str(folder)}, carried)

    @classmethod
    def _of_adapter(
        cls, adapter: Adapter, base: BaseRef, provenance: Mapping[str, Any], carried: Iterable[Path]
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
        for name in base.vocabulary_names() & self._whole:
            if self.shape(name)[0] != base.shape(name)[0]:
                return self.shape(name)[0]
        return None

    # -- applying ------------------------------------------------------------------------------------------------

    def check_base(self, found: str, ref: str = "this base") -> None:
        """Raise :class:`UserError` unless the fingerprint ``found`` is that of the base this delta was made on."""
        if found != self.base_fingerprint:
            raise UserError(
                f"the delta belongs on {self.base_ref} ({self.base_fingerprint[:19]}...), not on {ref} "
                f"({found[:19]}...). Open the base it names, or take the delta anew on this one."
            )

    def check_fits(self, base: Checkpoint) -> None:
        """Raise :class:`UserError`, by name, for a tensor that ``base`` does not have in the delta's shape."""
        vocabulary = base.vocabulary_names()
        for name, (shape, _) in self._specs.items():
            if name not in base:
                raise UserError(
                    f"the delta changes '{name}', which {base.where} does not have under that name. If transformers "
                    f"fuses such tensors while loading, write the tuned model as files (skillweave unzip) and open it."
                )
            expected = base.shape(name)
            if shape != expected and not (self.whole(name) and name in vocabulary and shape[1:] == expected[1:]):
                raise UserError(f"the delta changes '{name}' in the shape {shape}; {base.where} has {expected}")

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
        tokenizer = base.tokenizer
        if any(file.name in TOKENIZER_FILES for file in self.carried):
            tokenizer = open_tokenizer(self.carried[0].parent)
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
            here, change = state[name], self.tensor(name)
            here.copy_(change if self.whole(name) else applied(here, change))
            advance()

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the delta into ``folder`` (replaced whole, atomically) and return it. Streams tensor by tensor.

        A full delta is ``delta.json`` + ``delta.safetensors``; a LoRA is exactly the two files that PEFT, vLLM and
        LoRAX load, + ``delta.json``. Carried files lie in a subfolder, out of their way.
        """
        folder = Path(folder)
        with atomic_folder(folder) as temporary:
            if isinstance(self._tensors, Adapter):
                hashes, where = self._copy_adapter(self._tensors, temporary)
            else:
                hashes, where = self._write_tensors(temporary)
            for file in self.carried:
                (temporary / _CARRIED).mkdir(exist_ok=True)
                shutil.copyfile(file, temporary / _CARRIED / file.name)
                hashes[f"{_CARRIED}/{file.name}"] = sha256_file(file)
            card = DeltaCard(
                kind=self.kind,
                base=BaseRef(ref=self.base_ref, fingerprint=self.base_fingerprint),
                entries={name: self._entry(name, where[name]) for name in self.names()},
                files=hashes,
                provenance=self.provenance,
            )
            write_json(temporary / DELTA_FILE, card.model_dump(mode="json"))
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

    def _copy_adapter(self, adapter: Adapter, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
        hashes = {}
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(adapter.folder / file, folder / file)
            hashes[file] = sha256_file(folder / file)
        return hashes, dict.fromkeys(adapter, WEIGHTS_FILE)

    def _entry(self, name: str, file: str) -> TensorEntry:
        shape, dtype = self._specs[name]
        adapter = self._tensors if isinstance(self._tensors, Adapter) else None
        return TensorEntry(
            stored="whole" if self.whole(name) else "lora" if adapter else "difference",
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
        for file, expected in card.files.items():
            if not (folder / file).is_file():
                raise UserError(f"{folder / file} is missing: the delta is incomplete. Copy or make it again.")
            if (found := sha256_file(folder / file)) != expected:
                raise UserError(
                    f"{folder / file} is damaged: its SHA-256 is {found[:12]}..., and {DELTA_FILE} names "
                    f"{expected[:12]}... Copy or make the delta again."
                )
        carried = [folder / file for file in card.files if file.startswith(f"{_CARRIED}/")]
        if card.kind == "lora":
            adapter = Adapter(folder, lambda name: name in card.entries and card.entries[name].transposed)
            _check_entries(card, adapter.specs, folder / WEIGHTS_FILE)
            return cls._of_adapter(adapter, card.base, card.provenance, carried)
        stored = _Stored(folder, {name: entry.file for name, entry in card.entries.items()})
        for file in sorted({entry.file for entry in card.entries.values()}):
            _check_entries(card, read_headers(folder / file), folder / file)
        return cls(
            stored,
            base_fingerprint=card.base.fingerprint,
            base_ref=card.base.ref,
            whole={name for name, entry in card.entries.items() if entry.stored == "whole"},
            specs={name: (entry.shape, getattr(torch, entry.dtype)) for name, entry in card.entries.items()},
            provenance=card.provenance,
            carried=carried,
        )


class _Stored(Mapping[str, torch.Tensor]):
    """Tensors in the safetensors files of a delta folder, read on access."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder, self._files = folder, files

    def __getitem__(self, name: str) -> torch.Tensor:
        with open_safetensors(self._folder / self._files[name]) as handle:
            return handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _check_entries(card: DeltaCard, specs: Mapping[str, Spec], file: Path) -> None:
    """Raise unless ``file`` holds every tensor that the card puts there, as the card says it is."""
    for name, entry in card.entries.items():
        if entry.file != file.name:
            continue
        if name not in specs:
            raise UserError(f"{file} lacks the tensor '{name}' that {DELTA_FILE} names. Copy or make the delta again.")
        shape, dtype = specs[name]
        if (shape, dtype_name(dtype)) != (entry.shape, entry.dtype):
            raise UserError(
                f"{file}: the tensor '{name}' is {dtype_name(dtype)} {shape}, {DELTA_FILE} says {entry.dtype} "
                f"{entry.shape}. Copy or make the delta again."
            )


def _check_adapter_files(folder: Path) -> None:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise UserError(
                f"{folder} has no {file}: a PEFT adapter is {CONFIG_FILE} + {WEIGHTS_FILE} "
                f"(save_pretrained with safe_serialization; pickle is not read)"
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
