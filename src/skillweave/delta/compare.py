"""Find the tensors of a tuned model that differ from its base, and check that the two models are comparable."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skillweave.base.checkpoint import Checkpoint
from skillweave.base.names import RenameRules
from skillweave.base.safetensors_io import Spec
from skillweave.delta.arithmetic import changed, difference, finite
from skillweave.delta.source import TensorSource
from skillweave.errors import UserError
from skillweave.progress import bar


class Comparison(TensorSource):
    """The differing tensors of two checkpoints. Indexing reads a tensor of each and gives their difference."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, specs: Mapping[str, Spec], whole: frozenset[str]) -> None:
        self._base, self._tuned = base, tuned
        self.specs = specs
        self.whole = whole
        self.where = tuned.where

    def __getitem__(self, name: str) -> torch.Tensor:
        tuned = self._tuned.tensor(name).cpu()
        if name in self.whole:
            return tuned
        return difference(self._base.tensor(name).cpu(), tuned, self.specs[name][1])


def compare(base: Checkpoint, tuned: Checkpoint, dtype: torch.dtype | None) -> Comparison:
    """The tensors of ``tuned`` that differ from ``base``. Both sides are read once, tensor by tensor.

    - Equal tensors are left out.
    - If one side does not have a tensor because it is tied to another, then that other tensor is compared.
    - A tensor whose rows are tokens may have another number of rows (added tokens). It is kept whole, and so is a
      tensor of integers.
    - Differences get ``dtype`` (None: the narrower of the two sides' dtypes).
    - Tensors of the files that no part of the model reads are named on the console.

    Raises :class:`UserError`, which names the tensor, for a tensor that only one side has, that has another shape, or
    that holds NaN or infinity.
    """
    for side in (base, tuned):
        side.tell_left_over()
    _same_names(base, tuned)
    vocabulary = base.vocabulary_names()
    check_rows_agree({name: tuned.shape(name)[0] for name in base.names() if name in vocabulary}, tuned.where)
    specs: dict[str, Spec] = {}
    whole = set()
    with bar("comparing", len(base.names())) as advance:
        for name in base.names():
            shape, resized = tuned.shape(name), tuned.shape(name) != base.shape(name)
            if resized and not (name in vocabulary and shape[1:] == base.shape(name)[1:]):
                raise UserError(
                    f"'{name}' has the shape {shape} in {tuned.where} and {base.shape(name)} in {base.where}. "
                    f"A delta needs a model that was tuned from this base: name the right one."
                )
            old, new = base.tensor(name).cpu(), tuned.tensor(name).cpu()
            for tensor, where in ((new, tuned.where), (old, base.where)):
                if not finite(tensor):
                    raise UserError(
                        f"'{name}' in {where} holds NaN or infinity: the training diverged, or the file is damaged. "
                        f"Take an earlier checkpoint."
                    )
            numbers = old.is_floating_point() and new.is_floating_point()
            if resized or (changed(old, new) if numbers else not torch.equal(old, new)):
                if resized or not numbers:
                    whole.add(name)
                    specs[name] = (shape, new.dtype)
                else:
                    specs[name] = (shape, dtype or _narrower(old.dtype, new.dtype))
            advance(note=f"{len(specs)} changed")
    return Comparison(base, tuned, specs, frozenset(whole))


def check_rows_agree(rows: Mapping[str, int], where: str) -> None:
    """Raise :class:`UserError` unless the embedding and the head (name -> rows) have equally many rows."""
    if len(set(rows.values())) > 1:
        counts = " and ".join(f"'{name}' {count}" for name, count in sorted(rows.items()))
        raise UserError(
            f"the tensors whose rows are tokens have different numbers of rows in {where}: {counts}. Resize them "
            f"together (resize_token_embeddings) and save the model again."
        )


def _narrower(old: torch.dtype, new: torch.dtype) -> torch.dtype:
    return old if old.itemsize < new.itemsize else new


def _same_names(base: Checkpoint, tuned: Checkpoint) -> None:
    """Raise unless each side has a value for every tensor of the other, of its own or through a tie."""
    for name in tuned.names():
        if name not in base and not _repeats(tuned, name, base.tied.get(name)):
            raise _one_side_only(name, tuned, "tuned model", base, "base")
    for name in base.names():
        if name not in tuned and name not in tuned.tied:
            raise _one_side_only(name, base, "base", tuned, "tuned model")


def _repeats(side: Checkpoint, name: str, source: str | None) -> bool:
    """Whether a tensor of ``side`` holds the values of its tensor ``source``."""
    if source is None or source not in side:
        return False
    one, other = side.tensor(name), side.tensor(source)
    return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def _stored_otherwise(name: str, owner: Checkpoint, other: Checkpoint) -> bool:
    """Whether ``other`` has the parts of this tensor, or the tensor that this one is a part of."""
    rules = RenameRules(owner.skeleton)
    return rules.rename(name)[0] in other or any(rules.rename(one)[0] == name for one in other.names())


def _around_text(name: str) -> str:
    """The name that a tensor of a language model has in a multimodal model around it."""
    return f"model.language_model.{name.removeprefix('model.')}"


def _one_side_only(name: str, owner: Checkpoint, owner_role: str, other: Checkpoint, other_role: str) -> UserError:
    """The error for a tensor that only ``owner`` has. The roles are "base" and "tuned model"."""
    if name in other.tied:
        return UserError(
            f"'{name}' has values of its own in the {owner_role} ({owner.where}); in the {other_role} ({other.where}) "
            f"it is tied to '{other.tied[name]}'. Train with the tie_word_embeddings of the base, or untie the base: "
            f"open it, give '{name}' a copy, set tie_word_embeddings=false, save it and use that as the base."
        )
    count = sum(one not in other and one not in other.tied for one in owner.names())
    if _stored_otherwise(name, owner, other):
        return UserError(
            f"'{name}' is in the {owner_role} ({owner.where}) only; the {other_role} ({other.where}) stores the same "
            f"weights in other pieces (for example each expert of a mixture by itself, or all experts in one tensor); "
            f"{count} such tensors. Save both in one form: model = AutoModelForCausalLM.from_pretrained(BASE), then "
            f"model.load_state_dict(TUNED.state_dict()), then model.save_pretrained(FOLDER)."
        )
    for text, role, multi, multi_role in (
        (owner, owner_role, other, other_role),
        (other, other_role, owner, owner_role),
    ):
        if any(_around_text(one) in multi for one in text.names()):
            return UserError(
                f"the {multi_role} ({multi.where}) reads more than text, and the {role} ({text.where}) is a language "
                f"model alone. Save both in one form: MULTI.model.language_model.load_state_dict("
                f"TEXT.model.state_dict()), then MULTI.save_pretrained(FOLDER)."
            )
    return UserError(
        f"'{name}' is in the {owner_role} ({owner.where}) only, not in the {other_role} ({other.where}); {count} such "
        f"tensors. A delta needs the same architecture on both sides: name the base that was tuned; a PEFT "
        f"adapter is opened with Delta.from_lora; a model in memory whose layers transformers fused while loading "
        f"must be saved first."
    )
