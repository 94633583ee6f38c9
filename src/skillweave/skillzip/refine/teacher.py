"""What the specialist says: its answers to the prompts, and its probabilities along them, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skillweave.base import Answer, Base, Prompt, Sampling, answer_ids, prompt_ids
from skillweave.base.generate import check_has_rows, generate_answers
from skillweave.base.safetensors_io import read_tensors, write_tensors
from skillweave.base.sizes import context_length, embedding_rows
from skillweave.errors import UserError
from skillweave.progress import bar, console, share_of
from skillweave.skillzip.refine.config import RefineConfig
from skillweave.skillzip.refine.forward import answer_logits, passes
from skillweave.skillzip.refine.loss import kept_part

_PROMPTS_A_PIECE = 16
"""A kill costs at most the answers to this many prompts."""


@dataclass(frozen=True)
class TeacherRow:
    """One prompt with an answer, and the part of the specialist's distributions that is kept (``loss.kept_part``)."""

    ids: list[int]
    """the tokens of prompt and answer"""
    prompt: int
    """the number of tokens of the prompt"""
    top: torch.Tensor
    """int32 (answer tokens, k)"""
    logs: torch.Tensor
    """float32 (answer tokens, k)"""
    rest: torch.Tensor
    """float32 (answer tokens,)"""

    @property
    def tokens(self) -> int:
        """The number of tokens of the answer."""
        return len(self.ids) - self.prompt


def teacher_rows(
    open_specialist: Callable[[], Base], examples: Sequence[tuple[Prompt, Answer]], config: RefineConfig, folder: Path
) -> list[TeacherRow]:
    """Return a row for each example (prompt, answer) that fits the context.

    The rows are kept in ``folder``, some prompts in a file, and what is there is read and not computed again. The
    specialist is opened only if something is missing, and freed before this returns. With ``config.answers ==
    "specialist"`` it writes the answers itself, without sampling. Prints how many examples are left out or cut off, and
    raises :class:`UserError` if none is left.
    """
    specialist: Base | None = None
    rows: list[TeacherRow] = []
    lacking = cut_off = 0
    label = "the specialist answers" if config.answers == "specialist" else "the specialist reads"
    with bar(label, len(examples)) as advance:
        for start in range(0, len(examples), _PROMPTS_A_PIECE):
            piece = examples[start : start + _PROMPTS_A_PIECE]
            file = folder / f"teacher-{start:06d}.safetensors"
            if not file.exists():
                specialist = specialist or open_specialist()
                write_tensors(file, _answered(specialist, piece, config, first=start))
            made, cut = _read(file)
            rows += made
            lacking += len(piece) - len(made)
            cut_off += cut
            advance(len(piece))
    del specialist
    if lacking:
        console.print(
            f"  {share_of(lacking, len(examples), 'prompts for the refinement')} fill the base's context, alone or "
            "with their answer, and are left out; shorten them",
            soft_wrap=True,
        )
    if cut_off:
        console.print(
            f"  {share_of(cut_off, len(rows), 'answers of the specialist')} are cut off at "
            f"max_new_tokens={config.max_new_tokens} (or at the base's context): the refinement does not see the rest",
            soft_wrap=True,
        )
    if not rows:
        raise UserError("no prompt for the refinement fits the base's context: give shorter prompts")
    return rows


@torch.no_grad()
def _answered(
    specialist: Base, piece: Sequence[tuple[Prompt, Answer]], config: RefineConfig, *, first: int
) -> dict[str, torch.Tensor]:
    """Return the rows of some examples as tensors, which :func:`_read` reads; ``first`` is the number of the first."""
    model, tokenizer = specialist.model, specialist.tokenizer
    encoded, cut = _encoded(specialist, piece, config, first)
    vocabulary = embedding_rows(model)
    for at, (before, after) in encoded.items():
        check_has_rows(tokenizer, before + after, vocabulary, f"prompt {first + at + 1} of the refinement")
    kept = [(before + after, len(before)) for before, after in encoded.values()]
    parts: dict[int, tuple[torch.Tensor, ...]] = {}
    for batch in passes(model, [len(ids) for ids, _ in kept]):
        logits = answer_logits(model, [kept[at] for at in batch])
        sizes = [len(kept[at][0]) - kept[at][1] for at in batch]
        split = [part.cpu().split(sizes) for part in kept_part(logits, config.top_k)]
        parts |= dict(zip(batch, zip(*split, strict=True), strict=True))
    k = min(config.top_k, vocabulary)
    empty = (torch.zeros(0, k, dtype=torch.int32), torch.zeros(0, k), torch.zeros(0))
    top, logs, rest = (torch.cat([empty[at], *(parts[row][at] for row in range(len(kept)))]) for at in range(3))
    return {
        "ids": torch.tensor([id_ for ids, _ in kept for id_ in ids], dtype=torch.int32),
        "sizes": torch.tensor([[len(ids), prompt] for ids, prompt in kept], dtype=torch.int32).reshape(-1, 2),
        "cut_off": torch.tensor(cut, dtype=torch.int32),
        "top": top,
        "logs": logs,
        "rest": rest,
    }


def _encoded(
    specialist: Base, piece: Sequence[tuple[Prompt, Answer]], config: RefineConfig, first: int
) -> tuple[dict[int, tuple[list[int], list[int]]], int]:
    """Return the tokens of prompt and answer of each example that fits, by its index, and how many are cut off."""
    tokenizer: Any = specialist.tokenizer
    context = context_length(specialist.model)
    before = {at: prompt_ids(tokenizer, prompt) for at, (prompt, _) in enumerate(piece)}
    fits = [at for at, ids in before.items() if ids and (context is None or len(ids) < context)]
    if config.answers == "given":
        after = {at: answer_ids(tokenizer, piece[at][1], piece[at][0]) for at in fits}
        whole = [at for at in fits if context is None or len(before[at]) + len(after[at]) <= context]
        return {at: (before[at], after[at]) for at in whole}, 0
    written = generate_answers(
        specialist.model,
        tokenizer,
        [piece[at][0] for at in fits],
        Sampling(max_new_tokens=config.max_new_tokens),
        numbers=[first + at for at in fits],
    )
    encoded, cut = {}, 0
    for at, (answer,) in zip(fits, written, strict=True):
        ids = answer_ids(tokenizer, answer.text, piece[at][0])
        # An answer that was cut off has no end, so the token that ends it is not learnt.
        ids = ids if answer.ended else ids[:-1]
        room = len(ids) if context is None else context - len(before[at])
        if ids[:room]:
            cut += not answer.ended
            encoded[at] = before[at], ids[:room]
    return encoded, cut


def _read(file: Path) -> tuple[list[TeacherRow], int]:
    """Return the rows in a file, and how many of their answers are cut off."""
    stored = read_tensors(file)
    sizes = stored["sizes"].tolist()
    answers = [length - prompt for length, prompt in sizes]
    ids = stored["ids"].split([length for length, _ in sizes])
    parts = zip(*(stored[name].split(answers) for name in ("top", "logs", "rest")), strict=True)
    rows = [
        TeacherRow(tokens.tolist(), prompt, *part) for (_, prompt), tokens, part in zip(sizes, ids, parts, strict=True)
    ]
    return rows, int(stored["cut_off"])
