"""A delta is what training changed: theta - theta_base, tensor by tensor, or the LoRA factors of that change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from skillweave.artefact import atomic_folder, write_json
from skillweave.base.checkpoint import Checkpoint
from skillweave.base.fingerprint import fingerprint
from skillweave.base.open import Base, as_dtype, resolve
from skillweave.delta.adapter_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_adapter_files,
    other_base,
    read_adapter_config,
    why_merged,
)
from skillweave.delta.adapter_source import adapter_folder
from skillweave.delta.adapter_whole import check_token_rows
from skillweave.delta.carry import PARTS as CARRIED_PARTS
from skillweave.delta.carry import Carried, changed_files, read_files, save_files
from skillweave.delta.compare import compare
from skillweave.delta.config_values import other_values, recorded_values, tell_other_config
from skillweave.delta.lora import Adapter
from skillweave.delta.schema import AGAIN, DELTA_FILE, BaseRef, DeltaCard, read_card
from skillweave.delta.source import GivenTensors, TensorSource
from skillweave.delta.stored import StoredTensors, weight_files
from skillweave.delta.tuned import TunedCheckpoint, tuned_base
from skillweave.errors import UserError, nearest
from skillweave.files.disk import check_room
from skillweave.files.folder import Folder
from skillweave.files.hashes import shortened
from skillweave.files.whole import read_whole
from skillweave.progress import bar, say_once

PARTS = (DELTA_FILE, "delta.safetensors", "delta-*-of-*.safetensors", CONFIG_FILE, WEIGHTS_FILE, *CARRIED_PARTS)
"""Paths of all files that a saved delta may have."""


class Delta:
    """A change of a base model, tensor by tensor.

    Args:
        tensors: Name of a base tensor -> its change. Either a :class:`TensorSource`, which reads or computes each
            tensor on access, or a plain mapping of tensors.
        base_fingerprint: The fingerprint of the base that the delta belongs on.
        base_ref: The name by which that base was opened.
        base_config: The values of that base's config that answers depend on
            (:func:`~skillweave.delta.config_values.recorded_values`).
        whole: With a plain mapping: names that map to the tuned tensor itself (added tokens, integers).
        rows: With a plain mapping: name -> n, where the first n rows are a difference from the base's, and the rows
            behind them are added tokens, as tuned.
        provenance: Free JSON, kept with the delta.
        carried: Files (tokenizer, chat template, generation config) that replace the base's in a written model and
            in :meth:`apply`.
    """

    def __init__(
        self,
        tensors: TensorSource | Mapping[str, torch.Tensor],
        *,
        base_fingerprint: str,
        base_ref: str = "the base",
        base_config: Mapping[str, Any] | None = None,
        whole: Collection[str] = (),
        rows: Mapping[str, int] | None = None,
        provenance: Mapping[str, Any] | None = None,
        carried: Carried | None = None,
    ) -> None:
        if not isinstance(tensors, TensorSource):
            tensors = GivenTensors(tensors, whole, rows)
        elif whole or rows:
            raise ValueError("a TensorSource says itself which tensors are whole and which have shared rows")
        self._source = tensors
        self.base_fingerprint = base_fingerprint
        self.base_ref = base_ref
        self.base_config = dict(base_config or {})
        self.provenance = dict(provenance or {})
        self.carried = carried or Carried()

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

        A :class:`Base` given as ``base`` stands for its files; given as ``tuned``, for its model in memory. Tensors are
        compared now and computed when they are read, so keep both sides until the delta is saved. Peak memory is that
        of a few copies of the largest tensor. Unchanged tensors are left out. If both sides are folders, the tokenizer
        and the generation config of the tuned one are carried along where they differ. Other values in the tuned
        config (:mod:`skillweave.delta.config_values`) cause a warning, which is also kept in ``provenance``.

        Differences are computed in float32 and stored in ``dtype``. None is the narrower of the two sides' dtypes, so
        bfloat16 on a bfloat16 base; see :func:`skillweave.delta.arithmetic.applied` for how closely :meth:`apply` then
        reproduces the tuned weights. "float32" makes it exact for bfloat16 weights that did not shrink by 2**16 or
        more. Raises :class:`UserError` for two models that are not comparable.
        """
        ours, base_fingerprint, base_ref = _as_base(base)
        theirs, name = _as_tuned(tuned)
        comparison = compare(ours, theirs, as_dtype(dtype))
        provenance = {"tuned": name}
        if warning := other_values(ours, theirs):
            say_once(f"Warning: {warning}")
            provenance["warning"] = warning
        folders = [Path(side.where) for side in (ours, theirs)]
        carried = changed_files(*folders) if all(folder.is_dir() for folder in folders) else None
        return cls(
            comparison,
            base_fingerprint=base_fingerprint,
            base_ref=base_ref,
            base_config=recorded_values(ours.config),
            provenance=provenance,
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
        the tensors are read (:class:`skillweave.delta.peft_merge.Merged`), and the console says why. An adapter that
        names another base causes a warning, which is also kept in ``provenance``. Raises :class:`UserError` if the
        adapter does not fit the base, or if it is more than a change of weights.
        """
        folder = adapter_folder(adapter, revision=revision, subfolder=subfolder)
        check_adapter_files(folder)
        config = read_adapter_config(folder)
        ours, base_fingerprint, base_ref = _as_base(base)
        base_folder = Path(ours.where) if Path(ours.where).is_dir() else None
        provenance: dict[str, Any] = {"adapter": str(adapter), "peft_type": config["peft_type"]}
        provenance |= {key: value for key, value in (("revision", revision), ("subfolder", subfolder)) if value}
        if warning := other_base(config, base_ref, base_folder) if base_folder else None:
            say_once(f"Warning: {warning}")
            provenance["warning"] = warning
        if (reason := why_merged(config)) is not None:
            say_once(f"The adapter {adapter} is merged into its base tensor by tensor: {reason}.")
            provenance["merged"] = reason
        source: TensorSource
        if reason is None:
            source = Adapter.on(folder, ours)
        else:
            from skillweave.delta.peft_merge import Merged  # PEFT takes seconds to import

            source = Merged(folder, config, ours)
        check_token_rows(source.specs, ours, folder / WEIGHTS_FILE)
        return cls(
            source,
            base_fingerprint=base_fingerprint,
            base_ref=base_ref,
            base_config=recorded_values(ours.config),
            provenance=provenance,
            carried=changed_files(base_folder, folder) if base_folder else None,
        )

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> Literal["full", "lora"]:
        """``"lora"`` for a delta that holds the factors of a PEFT adapter, else ``"full"``."""
        return self._source.kind

    def names(self) -> list[str]:
        """Names of the changed tensors, sorted."""
        return sorted(self._source.specs)

    def __contains__(self, name: str) -> bool:
        return name in self._source.specs

    def tensor(self, name: str) -> torch.Tensor:
        """``theta - theta_base`` of one tensor (of a LoRA: s B A in float32), or the tuned one where :meth:`whole`.

        Raises :class:`UserError` for a name that the delta does not change.
        """
        if name not in self:
            raise UserError(f"{self._source.owner} does not change '{name}'; {nearest(name, self.names())}")
        return self._source[name]

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the two factors of a matrix's change, float32, without forming their product; None if it is dense.

        The product may be the transpose of :meth:`tensor`, so it fits questions about singular values and entries.
        """
        return self._source.factors(name)

    def whole(self, name: str) -> bool:
        """Whether :meth:`tensor` gives the tuned tensor itself instead of a difference."""
        return name in self._source.whole

    def shared_rows(self, name: str) -> int | None:
        """The number of leading rows of :meth:`tensor` that are a difference, where the others are tuned; else None."""
        return self._source.rows.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._source.specs[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor as :meth:`tensor` gives it, without reading it."""
        return self._source.specs[name][1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they are stored (the factors, for a LoRA), without headers and JSON."""
        return self._source.nbytes

    @property
    def bf16_nbytes(self) -> int:
        """2 bytes for every parameter of every changed tensor: the size that ratios are measured against."""
        return sum(2 * torch.Size(shape).numel() for shape, _ in self._source.specs.values())

    # -- applying ------------------------------------------------------------------------------------------------

    def check_base(self, fingerprint: str, ref: str = "this base", config: Any = None) -> None:
        """Raise :class:`UserError` unless ``fingerprint`` is that of the base that this delta was made on.

        ``ref`` is the name of the checked base, for the message. ``config`` is its config: a warning names the values
        that answers depend on, and that were others when the delta was made.
        """
        if fingerprint != self.base_fingerprint:
            wanted, other = shortened(self.base_fingerprint, fingerprint)
            raise UserError(
                f"{self._source.owner} belongs on {self.base_ref} ({wanted}), not on {ref} ({other}). "
                "Open the base it names, or make the delta again on this one."
            )
        tell_other_config(self.base_config, config, self._source.where or "the delta", self.base_ref)

    def on(self, base: Checkpoint, dtype: torch.dtype | None = None) -> TunedCheckpoint:
        """The tensors of the tuned model, one at a time: those of ``base`` with every change added.

        ``dtype`` is that of floating-point tensors; None keeps the base's. The base's fingerprint is not checked.
        Raises :class:`UserError`, by name, for a changed tensor that ``base`` does not have in a shape that fits.
        """
        return TunedCheckpoint(base, self._source, dtype)

    def apply(self, base: Base, *, in_place: bool = False) -> Base:
        """The tuned model: a copy of ``base`` (or its own model, ``in_place``) with every change added.

        The result's fingerprint is that of the model in memory. Raises :class:`UserError` for another base than the
        delta's, before anything is changed.
        """
        self.check_base(base.fingerprint, base.ref, base.model.config)
        tuned = self.on(Checkpoint(base.model))
        with bar("applying", len(self.names())) as advance:
            return tuned_base(base, tuned, self.carried, in_place=in_place, advance=advance)

    def add_to(self, model: Any) -> None:
        """Add every change to a model in memory that is known to be the base, in any dtype.

        Sums are computed in float32 and rounded once to the model's dtype.
        """
        self.on(Checkpoint(model)).load_into(model)

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the delta into ``folder`` (replaced whole, atomically) and return the folder. One tensor is in memory.

        A full delta is ``delta.json`` + ``delta.safetensors``. A LoRA is exactly the two files that PEFT, vLLM and
        LoRAX load, + ``delta.json``. Carried files lie in a subfolder, where these tools do not look.
        """
        folder = Path(folder)
        check_room(folder, self.nbytes, "the delta")
        with atomic_folder(folder) as temporary:
            hashes, entries = self._source.save(temporary)
            hashes |= save_files(self.carried, temporary)
            card = DeltaCard(
                kind=self.kind,
                base=BaseRef(ref=self.base_ref, fingerprint=self.base_fingerprint),
                base_config=self.base_config,
                entries=dict(sorted(entries.items())),
                files=hashes,
                from_base=dict(self.carried.from_base),
                provenance=self.provenance,
            )
            write_json(temporary / DELTA_FILE, card.to_values())
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Delta:
        """Open a saved delta. Every file is checked against its hash now; tensors are read on access.

        Raises :class:`UserError`, which names the file or the tensor, if something is missing, damaged or newer.
        """
        return read_whole(folder, PARTS, lambda: cls._read(Path(folder)))

    @classmethod
    def _read(cls, folder: Path) -> Delta:
        card = read_card(folder)
        reader = Folder(folder, DELTA_FILE, AGAIN)
        carried = read_files(reader, card.files, card.from_base)
        files = reader.verified(weight_files(card, folder))
        return cls(
            Adapter.saved(folder, card) if card.kind == "lora" else StoredTensors(folder, card, files),
            base_fingerprint=card.base.fingerprint,
            base_ref=card.base.ref,
            base_config=card.base_config,
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
