"""What several answers to one prompt tell: pass@k, and the vote of the majority."""

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
"""The verifiers that read an answer and the gold answer alike, so that they can tell whether two answers are the same.
Others (code, a function of the user) judge by something else than the gold text."""


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that one of ``k`` of ``n`` samples is right, where ``right`` are: 1 - C(n - right, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1
    [abstract], in whole numbers up to the one division.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples of which {right} are right")
    return 1 - comb(n - right, k) / comb(n, k)


def shown_ks(n: int) -> list[int]:
    """The k of pass@k that are shown for ``n`` samples: the powers of two below, and n."""
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n]


def vote(answers: Sequence[str | None], same: Callable[[str, str], bool]) -> int:
    """The index of the answer that most of them agree with (self-consistency, Wang et al. 2022).

    An answer joins the first group whose first answer is the ``same``. Of groups of one size the one that began first
    wins. None, which is no answer, has no vote; index 0 is returned where there is no other.
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
    """Whether two answers are one final answer, as the task's verifier sees it: one counts as right where the other
    gives the gold answer. Where the verifier compares with no gold text, the same text without thoughts, up to case
    and white space."""
    spec: Any = BUILTINS[task.spec.name] if isinstance(task.spec, BuiltinSpec) else task.spec
    name: Any = getattr(spec, "verifier", None)  # reasoning-gym judges by itself
    options = options_for(name, dict(spec.options)) if name in _COMPARES_WITH_GOLD and name in VERIFIERS else None

    @lru_cache(maxsize=1024)
    def gold_of(answer: str) -> str | None:
        """What the verifier itself takes for the gold text of an answer."""
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
    """The parts of an answer that may be its final answer: the whole, its JSON, what is boxed or marked, a line."""
    yield answer
    begin = min((at for at in map(answer.find, "{[") if at >= 0), default=0)
    yield answer[begin : max(map(answer.rfind, "}]")) + 1]
    yield answer.rpartition("\\boxed{")[2].partition("}")[0]
    lines = answer.strip().splitlines() or [""]
    for text in (lines[-1].rpartition(":")[2], lines[-1], lines[0]):
        yield text.strip()
