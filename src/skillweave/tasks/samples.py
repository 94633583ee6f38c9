"""Figures of several answers to one prompt: pass@k, and the majority vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import comb
from typing import Any

from skillweave.base.thoughts import strip_thoughts
from skillweave.tasks.builtin import BUILTINS
from skillweave.tasks.spec import BuiltinSpec
from skillweave.tasks.task import Task, normal_text
from skillweave.tasks.verifiers import VERIFIERS, options_for, verify

_COMPARES_WITH_GOLD = ("exact", "numeric", "math", "json")
"""The verifiers that read the answer and the gold answer in the same way, so that they can compare two answers.
The others (code, a user's function) do not judge by the gold text."""


def pass_at(k: int, n: int, right: int) -> float:
    """pass@k: the chance that at least one of ``k`` samples is right, if ``right`` of ``n`` samples are.

    It is 1 - C(n - right, k) / C(n, k), the unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", equation 1 [relative], computed in integers with one division. Raises ``ValueError`` for numbers
    that do not fit.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples of which {right} are right")
    return 1 - comb(n - right, k) / comb(n, k)


def shown_ks(n: int) -> list[int]:
    """The values of k for which pass@k is shown: the powers of two below ``n``, and ``n``."""
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n]


def vote(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> int:
    """The index of the answer that most answers agree with (self-consistency, Wang et al. 2022).

    Each answer joins the first group whose first answer is the ``same``. Of groups of equal size the earliest wins.
    None (no answer) does not vote. The index is 0 if all answers are None.
    """
    groups: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for group in groups:
            first = answers[group[0]]
            assert first is not None
            if same(answer, first):
                group.append(index)
                break
        else:
            groups.append([index])
    return max(groups, key=len)[0] if groups else 0


def same_answer(task: Task) -> Callable[[str, str], bool]:
    """A function that says whether two answers are the same final answer for the task's verifier.

    They are if one counts as right when the other gives the gold answer. If the verifier does not compare with a gold
    text, they are if their texts without thoughts are equal up to case and white space.
    """
    spec: Any = BUILTINS[task.spec.name] if isinstance(task.spec, BuiltinSpec) else task.spec
    name: Any = getattr(spec, "verifier", None)  # reasoning-gym judges by itself
    options = options_for(name, dict(spec.options)) if name in _COMPARES_WITH_GOLD and name in VERIFIERS else None

    @lru_cache(maxsize=1024)
    def gold_of(answer: str) -> str | None:
        """The part of an answer that the verifier accepts as its gold text, or None."""
        if options is None:
            return None
        return next((gold for gold in _golds(answer) if verify(name, answer, gold, options) == 1), None)

    def same(one: str, other: str) -> bool:
        one, other = strip_thoughts(one), strip_thoughts(other)
        if normal_text(one) == normal_text(other):
            return True
        gold = gold_of(other)
        return options is not None and gold is not None and verify(name, one, gold, options) == 1

    return same


def _golds(answer: str) -> Iterator[str]:
    """The parts of an answer that may be its final answer: the whole, its JSON, its box, its last and first line."""
    yield answer
    begin = min((at for at in map(answer.find, "{[") if at >= 0), default=0)
    yield answer[begin : max(map(answer.rfind, "}]")) + 1]
    yield answer.rpartition("\\boxed{")[2].partition("}")[0]
    lines = answer.strip().splitlines() or [""]
    for text in (lines[-1].rpartition(":")[2], lines[-1], lines[0]):
        yield text.strip()
