"""The interface between a delta and where its tensors come from: a comparison, an adapter, a folder, a pack, memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from skillweave.base.safetensors_io import Spec, plan_files, spec_bytes, write_stream
from skillweave.delta.schema import TensorEntry, dtype_name
from skillweave.progress import bar


class TensorSource(ABC):
    """The changed tensors of a base by name. Indexing reads or computes one tensor; nothing is kept afterwards.

    Attributes:
        specs: Name of a base tensor -> shape and dtype of what indexing gives. Known without reading values.
        whole: Names for which indexing gives the tuned tensor itself. For all others it gives tuned - base.
        rows: Name -> n. The first n rows are a difference; the rows behind them are added tokens, as tuned.
        where: The folder or pack that the tensors come from, for messages; "" in memory.
        kind: ``"lora"`` for the factors of a PEFT adapter, else ``"full"``.
    """

    specs: Mapping[str, Spec]
    whole: frozenset[str] = frozenset()
    rows: Mapping[str, int] = MappingProxyType({})
    where: str = ""
    kind: Literal["full", "lora"] = "full"

    @abstractmethod
    def __getitem__(self, name: str) -> torch.Tensor:
        """The difference from the base's tensor of that name, or the tuned tensor itself."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return (out, r) and (r, in), float32, whose product is the whole difference of a matrix; None if it is dense.

        The product may be the transpose of what indexing gives.
        """
        return None

    @property
    def owner(self) -> str:
        """How a message names this delta: ``"models/sums: the delta"``."""
        return f"{self.where}: the delta" if self.where else "the delta"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as :meth:`save` stores them, without headers."""
        return sum(map(spec_bytes, self.specs.values()))

    def save(self, folder: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
        """Write the tensors into ``folder``, one at a time.

        Returns (file name -> SHA-256, tensor name -> its entry in ``delta.json``).
        """
        files = plan_files(self.specs, "delta")
        hashes = {}
        with bar("writing the delta", len(self.specs)) as advance:

            def read(name: str) -> torch.Tensor:
                advance()
                return self[name]

            for file, names in files.items():
                hashes[file] = write_stream(folder / file, {name: self.specs[name] for name in names}, read)
        return hashes, {name: self._entry(name, file) for file, names in files.items() for name in names}

    def _entry(self, name: str, file: str) -> TensorEntry:
        shape, dtype = self.specs[name]
        return TensorEntry(
            stored="whole" if name in self.whole else "rows" if name in self.rows else "difference",
            shape=shape,
            dtype=dtype_name(dtype),
            file=file,
            shared=self.rows.get(name),
        )


class GivenTensors(TensorSource):
    """Tensors in memory: a plain mapping, with the names that :class:`TensorSource` calls ``whole`` and ``rows``."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        whole: Collection[str] = (),
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self._tensors = tensors
        self.specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        self.whole = frozenset(whole)
        self.rows = dict(rows or {})
        if unknown := (self.whole | set(self.rows)) - set(tensors):
            raise ValueError(f"whole or rows names no tensor of the delta: {sorted(unknown)}")

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]
