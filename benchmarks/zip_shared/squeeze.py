"""What a zip keeps of tensors, at a share of their bytes in bf16: one pack for each delta, or one basis for several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.zip_shared.merge import Tensors
from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.delta.carry import Carried
from skillweave.errors import TooSmall
from skillweave.pack import BaseRef, Codec, PackBytes, PackCard, Skillpack
from skillweave.skillzip import ZipConfig
from skillweave.skillzip.codecs.integer_factors import integer_factors
from skillweave.skillzip.decompositions import DecompositionStore
from skillweave.skillzip.draft import Draft
from skillweave.skillzip.losses import Losses
from skillweave.skillzip.plan import Piece, Plan, plan
from skillweave.skillzip.source import MatrixSource
from skillweave.skillzip.zip import zip_once


@dataclass(frozen=True)
class Kept:
    """What a pack gives back, float32 under every name of the delta, and the bytes of its files."""

    tensors: dict[str, torch.Tensor]
    nbytes: int
    card: int
    """the bytes of the card, which are among them"""


class Squeezed:
    """A delta that is zipped at several sizes; the decompositions are made once."""

    def __init__(self, tensors: Tensors, base: Base) -> None:
        self._delta = Delta(dict(tensors), base_fingerprint=base.fingerprint, base_ref=base.ref)
        self._base = base
        self._store = DecompositionStore()

    @torch.no_grad()
    def at(self, ratio: float) -> Kept | None:
        """Return what a pack of ``ratio`` of the bf16 delta keeps, or None if there is no pack so small."""
        config = ZipConfig(ratio=ratio, allow_left_out=True)
        try:
            pack = zip_once(
                self._delta, self._base, None, config, self._store, name="pack", method="", data=None, scores=None
            )
        except TooSmall:
            return None
        tensors = _given(pack, {name: self._delta.shape(name) for name in self._delta.names()})
        return Kept(tensors, pack.nbytes, pack.card.bytes.metadata)


class SharedBasis:
    """Deltas of linear layers whose packs share one B (r, in) for each matrix, and have an A (out, r) of their own.

    The matrices are stacked, (K out, in), and the stack is zipped as one matrix: the best B is that of its SVD, and
    the bytes are shared out as in any pack. [ours]
    """

    def __init__(self, deltas: Sequence[Tensors], base: Base) -> None:
        self._deltas, self._base = deltas, base
        self._plan = _stacked_plan(deltas, base)
        self._store = DecompositionStore()

    @torch.no_grad()
    def at(self, ratio: float, card: int) -> list[Kept] | None:
        """Return what each pack keeps if B and all packs take K times ``ratio`` of a delta; None if nothing fits.

        ``card`` is the size of a pack's card: the stack has one, and K packs have K.
        """
        packs, size = len(self._deltas), self._plan.bf16_bytes
        spent = (packs - 1) * card
        limit = int(ratio * size) - spent
        config = ZipConfig(budget=max(1, limit), allow_left_out=True)
        draft = Draft(
            card=PackCard(
                name="shared",
                base=BaseRef(ref=self._base.ref, fingerprint=self._base.fingerprint),
                method="",
                data={},
                scores={},
                codec=Codec(name=config.codec, settings=config.settings(), measured={}),
                bytes=PackBytes(bf16_delta=size, bf16_matrices=size),
                entries={},
                left_out=[],
            ),
            tensors={},
            carried=Carried(),
            plan=self._plan,
            limit=max(1, limit),
            allow_left_out=True,
        )
        try:
            encoded = integer_factors(config, _Stack(self._deltas, self._base, self._plan, self._store), draft)
        except TooSmall:
            return None
        pack = draft.pack(encoded, Losses(0.0, {}, 0.0))
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(packs)]
        for name, whole in _given(pack, {name: piece.shape for name, piece in self._plan.pieces.items()}).items():
            for part, own in zip(parts, whole.chunk(packs), strict=True):
                part[name] = own
        return [Kept(part, (pack.nbytes + spent) // packs, card) for part in parts]


def _given(pack: Skillpack, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return what a pack gives back for these names; a tensor that it leaves out does not change."""
    given = pack.unzip()
    stored = set(given.names())
    return {name: given.tensor(name) if name in stored else torch.zeros(shape) for name, shape in shapes.items()}


class _Stack(MatrixSource):
    """Reads the stacked matrices of several deltas."""

    def __init__(self, deltas: Sequence[Tensors], base: Base, stacked: Plan, store: DecompositionStore) -> None:
        first = Delta(dict(deltas[0]), base_fingerprint=base.fingerprint, base_ref=base.ref)
        super().__init__(
            first, base, stacked, examples=[], tokenizer=base.tokenizer, token_rows=None, decompositions=store
        )
        self._deltas = deltas

    def matrix(self, key: str) -> torch.Tensor:
        """Return one matrix of all deltas, float32 (K out, in)."""
        return torch.cat([delta[key].float() for delta in self._deltas])


def _stacked_plan(deltas: Sequence[Tensors], base: Base) -> Plan:
    first = Delta(dict(deltas[0]), base_fingerprint=base.fingerprint, base_ref=base.ref)
    stacked = Plan()
    for group, keys in (one := plan(first, base.checkpoint, base.model)).groups.items():
        for key in keys:
            piece = one.pieces[key]
            if piece.index is not None or piece.transposed:
                raise ValueError(f"{key} is no plain linear layer")
            shape = (len(deltas) * piece.shape[0], piece.shape[1])
            stacked.add(group, key, Piece(key, shape, shape))
    return stacked


@contextlib.contextmanager
def moved(base: Base, *changes: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """A context in which the changes are added to the base's weights; afterwards these are the old ones, to the bit."""
    given = [change for change in changes if change is not None]
    names = sorted({name for change in given for name in change})
    weights = {name: base.model.get_parameter(name) for name in names}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for change in given:
                for name, tensor in change.items():
                    weights[name].add_(tensor)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
