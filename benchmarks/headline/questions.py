"""What is asked: a prompt with its judge and the packs that may answer it; and how a weave answers a list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skillweave.base import Prompt, Sampling
from skillweave.tasks import Task
from skillweave.tasks.with_tools import ToolUse, agent_of
from skillweave.tools.conversation import OpenTools
from skillweave.weave import Reply, Weave

OWN, ALIKE, REWORDED, TWO, EVERYDAY = "own words", "look alike", "other words", "two skills", "everyday"
HARD = (ALIKE, REWORDED, TWO, EVERYDAY)
"""The kinds of prompts that are hard to route; ``own words`` is what the skills are trained on."""


@dataclass(frozen=True)
class Question:
    """A prompt, the skills that it is for (none: the plain base), and its judge.

    ``score(answer)`` is in [0, 1], or None if nobody can say. ``agent`` is the task whose tools it needs.
    """

    prompt: Prompt
    skills: tuple[str, ...]
    score: Callable[[str | None], float | None]
    agent: Task | None = None


def exact(gold: str) -> Callable[[str | None], float]:
    """Return a judge that takes this answer alone, up to white space at its ends."""
    return lambda answer: float(answer is not None and answer.strip() == gold)


def share_of_both(golds: tuple[str, str]) -> Callable[[str | None], float]:
    """Return a judge of prompts with two skills: the share of the two answers that are in the text."""
    return lambda answer: sum(gold in (answer or "") for gold in golds) / 2


def unjudged(answer: str | None) -> None:
    """Return None: there is no right answer to an everyday prompt."""


def replies(weave: Weave, asked: Sequence[Question], packs: Sequence[str | None], tokens: int) -> list[Reply]:
    """Return the reply to each question, with the pack that is named for it (None: the plain base; or AUTO)."""
    sampling = Sampling(max_new_tokens=tokens, batch_size=64)
    found: dict[int, Reply] = {}
    groups: dict[int, list[int]] = {}
    for at, question in enumerate(asked):
        groups.setdefault(id(question.agent) if question.agent else 0, []).append(at)
    for numbers in groups.values():
        prompts, named = [asked[at].prompt for at in numbers], [packs[at] for at in numbers]
        agent = asked[numbers[0]].agent
        if agent is None:
            given = weave.generate(prompts, named, sampling)
        else:
            with agent_of(agent).toolbox as toolbox:
                given = weave.generate(prompts, named, sampling, tools=OpenTools(toolbox, ToolUse(max_tokens=128)))
        found.update(zip(numbers, given, strict=True))
    return [found[at] for at in range(len(asked))]


def scores(asked: Sequence[Question], given: Sequence[Reply]) -> list[float | None]:
    """Return the score of each reply; a conversation that ended without an answer has none to judge, and scores 0."""
    return [question.score(reply.answer) for question, reply in zip(asked, given, strict=True)]


def routing(asked: Sequence[Question], given: Sequence[Reply]) -> dict[str, float]:
    """Return the shares of prompts that went to a right pack, to the base though a pack was right, and to a wrong pack.

    For a prompt of no skill, the base is right.
    """
    right = to_base = wrong = 0
    for question, reply in zip(asked, given, strict=True):
        homes = question.skills or (None,)
        if reply.pack in homes:
            right += 1
        elif reply.pack is None:
            to_base += 1
        else:
            wrong += 1
    return {"right": right / len(asked), "to_base": to_base / len(asked), "wrong_pack": wrong / len(asked)}
