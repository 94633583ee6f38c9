"""Which tensors of a tuned model differ from its base, and whether they can be told apart at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.delta.arithmetic import changed, difference, finite
from skillweave.delta.stream import Spec
from skillweave.errors import UserError
from skillweave.progress import bar


@dataclass(frozen=True)
class Comparison(Mapping[str, torch.Tensor]):
    """The differing tensors as a mapping that computes on access: two tensors are read, one is returned.

    ``specs`` gives the shape and dtype that each will have; names in ``whole`` map to the tuned tensor itself.
    """

    base: Checkpoint
    tuned: Checkpoint
    specs: Mapping[str, Spec]
    whole: frozenset[str]

    def __getitem__(self, name: str) -> torch.Tensor:
        _, dtype = self.specs[name]
        if name in self.whole:
            return self.tuned.tensor(name).cpu()
        return difference(self.base.tensor(name).cpu(), self.tuned.tensor(name).cpu(), dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def compare(base: Checkpoint, tuned: Checkpoint, dtype: torch.dtype | None) -> Comparison:
    """Find what changed, reading both sides once, tensor by tensor.

    Equal tensors are left out. Tensors whose rows are tokens may have another number of rows (added tokens); these
    and tensors of integers are kept whole. Differences get ``dtype``, or the narrower of the two sides' dtypes.
    Raises :class:`UserError`, by name, for a tensor that only one side has, that has another shape, or that holds
    NaN or infinity.
    """
    _same_names(base, tuned)
    vocabulary = base.vocabulary_names()
    check_rows_agree({name: tuned.shape(name)[0] for name in base.names() if name in vocabulary}, tuned.where)
    specs: dict[str, Spec] = {}
    whole = set()
    with bar("comparing", len(base.names())) as advance:
        for name in base.names():
            shape, grown = tuned.shape(name), tuned.shape(name) != base.shape(name)
            if grown and not (name in vocabulary and shape[1:] == base.shape(name)[1:]):
                raise UserError(
                    f"'{name}' has the shape {shape} in {tuned.where} and {base.shape(name)} in {base.where}. "
                    f"A delta needs a model tuned from this very base: name the right one."
                )
            old, new = base.tensor(name).cpu(), tuned.tensor(name).cpu()
            for tensor, where in ((new, tuned.where), (old, base.where)):
                if not finite(tensor):
                    raise UserError(
                        f"'{name}' in {where} holds NaN or infinity: the training diverged, or the file is damaged. "
                        f"Take an earlier checkpoint."
                    )
            numbers = old.is_floating_point() and new.is_floating_point()
            if grown or (changed(old, new) if numbers else not torch.equal(old, new)):
                if grown or not numbers:
                    whole.add(name)
                    specs[name] = (shape, new.dtype)
                else:
                    specs[name] = (shape, dtype or _narrower(old.dtype, new.dtype))
            advance(note=f"{len(specs)} changed")
    return Comparison(base, tuned, specs, frozenset(whole))


def check_rows_agree(rows: Mapping[str, int], where: str) -> None:
    """Raise :class:`UserError` unless embedding and head, name -> rows, have as many rows as each other."""
    if len(set(rows.values())) > 1:
        told = " and ".join(f"'{name}' {count}" for name, count in sorted(rows.items()))
        raise UserError(
            f"the tensors whose rows are tokens have unlike numbers of rows in {where}: {told}. Resize them together "
            f"(resize_token_embeddings) and save the model again."
        )


def _narrower(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    return old if old.itemsize < new.itemsize else new


def _same_names(base: Checkpoint, tuned: Checkpoint) -> None:
    sides = ((base, tuned, "tuned model", "base"), (tuned, base, "base", "tuned model"))
    for short, long, having, lacking in sides:
        extra = [name for name in long.names() if name not in short]
        if not extra:
            continue
        name = extra[0]
        if name in short.tied:
            raise UserError(
                f"'{name}' is a tensor of its own in the {having} ({long.where}); in the {lacking} ({short.where}) it "
                f"is tied to '{short.tied[name]}'. Train with tie_word_embeddings as the base has it, or untie the "
                f"base: open it, give '{name}' a copy, set tie_word_embeddings=false, save it and use that as the base."
            )
        raise UserError(
            f"'{name}' is in the {having} ({long.where}) only, not in the {lacking} ({short.where}); {len(extra)} such "
            f"tensors. A delta needs the same architecture on both sides: name the base that was tuned; a PEFT "
            f"adapter is opened with Delta.from_lora; a model in memory whose layers transformers fused while loading "
            f"must be saved first."
        )
