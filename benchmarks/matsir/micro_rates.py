"""How well a model plays its roles on generated problems: single samples, refinements, and the critic's notes.

Programs are read back into the parts of their family, so nothing that a model wrote is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from skillweave.reason.agents.prompt_set import PromptSet
from skillweave.reason.agents.prompt_values import pair_texts
from skillweave.reason.induction.draw import DrawnProblem, evaluation
from skillweave.reason.induction.families import Program
from skillweave.reason.induction.rows import criticise_prompt, refine_prompt

Ask = Callable[[Sequence[str], int, int], list[list[str]]]
"""(prompts, samples of each, seed) -> the texts"""


@dataclass(frozen=True)
class Tried:
    """A sampled program: its parts, or None if it is of no family's form, and the share of training pairs it solves."""

    program: Program | None
    coherent: float


def propose(ask: Ask, problems: Sequence[DrawnProblem], samples: int, seed: int) -> list[list[Tried]]:
    """So many sampled programs for each problem."""
    prompts = PromptSet.named("induction")
    texts = ask([propose_prompt(prompts, problem) for problem in problems], samples, seed)
    return [[tried(problem, text) for text in drawn] for problem, drawn in zip(problems, texts, strict=True)]


def propose_prompt(prompts: PromptSet, problem: DrawnProblem) -> str:
    """The proposer's prompt."""
    return prompts.render("propose_program", pairs=pair_texts(problem.examples), avoid=[])


def tried(problem: DrawnProblem, text: str) -> Tried:
    """What the program in an answer does on the training pairs."""
    program = problem.family.read(text)
    return Tried(program, 0.0 if program is None else evaluation(problem, program).coherent)


def pass_at(k: int, solved: int, samples: int) -> float:
    """The chance that one of ``k`` samples solves the problem, without bias (arXiv 2107.03374, equation 1)."""
    return 1 - comb(samples - solved, k) / comb(samples, k)


def failures(problem: DrawnProblem, drawn: Sequence[Tried], most: int) -> list[Program]:
    """Up to ``most`` distinct failing programs whose outputs are short enough for a prompt."""
    found = list(dict.fromkeys(one.program for one in drawn if one.program is not None and one.coherent < 1))
    return [one for one in found if all(map(problem.family.fits, evaluation(problem, one).outcomes))][:most]


def measure(ask: Ask, problems: Sequence[DrawnProblem], samples: int = 64, failing: int = 4) -> dict[str, Any]:
    """The rates on held-out problems.

    - ``pass@k``: the chance that one of k sampled programs solves all training pairs
    - ``improved``, ``fixed``: shares of the model's own failing programs that one call of the refiner improves (it
      solves more training pairs) or repairs; without a note, with the critic's note, and with the right note
    - ``fresh``: the share of new proposals that solve the same problems: what the refiner must exceed
    - ``critic``: the share of notes that name the first wrong part
    """
    prompts = PromptSet.named("induction")
    drawn = propose(ask, problems, samples, seed=0)
    readable = _mean([one.program is not None for some in drawn for one in some])
    found: dict[str, Any] = {"problems": len(problems), "readable": readable}
    for k in (1, 4, 16, 64):
        if k <= samples:
            found[f"pass@{k}"] = _mean([pass_at(k, sum(t.coherent == 1 for t in d), samples) for d in drawn])
    pairs = [(p, wrong, d) for p, d in zip(problems, drawn, strict=True) for wrong in failures(p, d, failing)]
    found["failing"] = len(pairs)
    found["fresh"] = _mean([sum(t.coherent == 1 for t in d) / samples for _, _, d in pairs])
    before = [evaluation(p, wrong).coherent for p, wrong, _ in pairs]
    found["fresh_improves"] = _mean(
        [sum(t.coherent > was for t in d) / samples for (_, _, d), was in zip(pairs, before, strict=True)]
    )
    notes = [one[0] for one in ask([criticise_prompt(p, prompts, wrong) for p, wrong, _ in pairs], 1, 1)]
    right = [p.family.fault(wrong, p.program) for p, wrong, _ in pairs]
    found["critic"] = _mean([note == gold for note, gold in zip(notes, right, strict=True)])
    for name, given in (("no note", [""] * len(pairs)), ("critic's note", notes), ("right note", right)):
        asked = [refine_prompt(p, prompts, wrong, note) for (p, wrong, _), note in zip(pairs, given, strict=True)]
        after = [
            [tried(p, text).coherent for text in texts]
            for (p, _, _), texts in zip(pairs, ask(asked, 4, 2), strict=True)
        ]
        found[f"improved, {name}"] = _mean([one > was for some, was in zip(after, before, strict=True) for one in some])
        found[f"fixed, {name}"] = _mean([one == 1 for some in after for one in some])
    return found


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)
