"""Questions whose answer is several facts away, over a corpus of invented people and places.

No model can know the answers beforehand: the names come from the world's seed, and each fact is one document that must
be searched for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from skillweave.base.chat import Message
from skillweave.tasks.builtin.family import Family, Script
from skillweave.tasks.builtin.kind import Span
from skillweave.tasks.builtin.names import people_names, place_names, short_names, short_relations
from skillweave.tools.builtin import Search
from skillweave.tools.toolbox import Toolbox, ToolSession

_RELATIONS = ("mentor", "neighbour", "rival", "doctor", "cousin", "tailor", "landlord", "guide")
_BIRTHPLACE = "birthplace"
_QUESTION = re.compile(r"(?:Who|What) is the (.+) of (\w+ \w+)\? Answer with the name only\.")


class HopsSettings(Span):
    """Settings of ``hops``; other worlds have other names and other facts."""

    least: int = Field(2, ge=1, le=8, description="fewest hops of a question")
    most: int = Field(3, ge=1, le=8, description="most hops of a question")
    world: int = Field(0, ge=0, description="the seed of the invented names and facts")
    people: int = Field(60, ge=3, le=1000, description="people in the world")
    places: int = Field(
        10,
        ge=0,
        le=200,
        description="places in the world; if there are any, each person has a birthplace, and the last hop of a "
        "question may ask for it",
    )
    relations: int = Field(
        4,
        ge=1,
        le=len(_RELATIONS),
        description="relations between people; each person has each relation to exactly one other person",
    )
    style: Literal["question", "short"] = Field(
        "question",
        description="question: 'Who is the rival of the mentor of Oresa Vindal? ...'; short: 'bor ku ze?' (who is "
        "bor's ku's ze?)",
    )
    k: int | None = Field(None, ge=1, description="documents that a search returns; None: 3, or 1 with style: short")

    @model_validator(mode="after")
    def _far_enough(self) -> Self:
        if self.people < self.most + 2:
            raise ValueError(f"{self.most} hops need at least {self.most + 2} people, found {self.people}")
        return self


@dataclass(frozen=True)
class World:
    """The people, relations and facts of one world.

    ``facts[who, relation]`` is the person or place that has this relation to ``who``; ``relations`` are the relations
    between people.
    """

    people: tuple[str, ...]
    relations: tuple[str, ...]
    birthplace: str
    facts: dict[tuple[str, str], str]


@lru_cache(maxsize=8)
def world_of(settings: HopsSettings) -> World:
    """The world of the settings: a pure function of ``world``, ``people``, ``places``, ``relations`` and ``style``.

    Each relation forms one circle of all people. So each person is the answer equally often, no one is related to
    themselves, and following one relation returns to a person only after all others.
    """
    if settings.style == "short":
        names = short_names(settings.world, settings.people + settings.places)
        people, places = names[: settings.people], names[settings.people :]
        *relations, birthplace = short_relations(settings.world, settings.relations + 1)
    else:
        people, places = people_names(settings.world, settings.people), place_names(settings.world, settings.places)
        relations, birthplace = list(_RELATIONS[: settings.relations]), _BIRTHPLACE
    rng = Random(settings.world)
    facts: dict[tuple[str, str], str] = {}
    for relation in relations:
        circle = rng.sample(people, len(people))
        facts |= {(who, relation): circle[index - 1] for index, who in enumerate(circle)}
    if places:
        facts |= {(who, birthplace): rng.choice(places) for who in people}
    return World(tuple(people), tuple(relations), birthplace, facts)


def documents(settings: HopsSettings) -> list[dict[str, str]]:
    """One document for each fact, ``{"title": who, "text": the fact}``; a person's facts are separate documents."""
    rows = []
    for (who, relation), other in world_of(settings).facts.items():
        short = settings.style == "short"
        text = f"{who} {relation} {other}" if short else f"The {relation} of {who} is {other}."
        rows.append({"title": who, "text": text})
    return rows


def _draw(rng: Random, settings: HopsSettings) -> tuple[str, list[str], str]:
    """A start, the relations to follow from there, and where they lead. No one is met twice, so every hop is needed."""
    world = world_of(settings)
    last = (*world.relations, world.birthplace) if settings.places else world.relations
    while True:
        start = at = rng.choice(world.people)
        hops = rng.randint(settings.least, settings.most)
        chain = [rng.choice(world.relations if hop < hops - 1 else last) for hop in range(hops)]
        met = [start]
        for relation in chain:
            at = world.facts[at, relation]
            met.append(at)
        if len(set(met)) == len(met):
            return start, chain, at


def make(rng: Random, settings: HopsSettings) -> tuple[str, str]:
    """``Who is the rival of the mentor of Oresa Vindal? Answer with the name only.`` -> ``Tamo Kershov``."""
    start, chain, answer = _draw(rng, settings)
    if settings.style == "short":
        return f"{' '.join([start, *chain])}?", answer
    word = "What" if chain[-1] == _BIRTHPLACE else "Who"
    return f"{word} is the {' of the '.join(reversed(chain))} of {start}? Answer with the name only.", answer


def _read(prompt: str, settings: HopsSettings) -> tuple[str, list[str]]:
    """The start and the relations of a prompt, in the order in which they are looked up."""
    if settings.style == "short":
        start, *chain = prompt.removesuffix("?").split(" ")
        return start, chain
    question = _QUESTION.fullmatch(prompt)
    assert question is not None
    return question[2], question[1].split(" of the ")[::-1]


def reserved(prompt: str, settings: HopsSettings) -> bool:
    """Whether a question is reserved for the test split: it starts at one of the first fifth of the people."""
    start, _ = _read(prompt, settings)
    people = world_of(settings).people
    return start in people[: max(1, len(people) // 5)]


def toolbox(settings: HopsSettings) -> Toolbox:
    """A search over the world's documents."""
    k = settings.k or (1 if settings.style == "short" else 3)
    return Toolbox([Search(documents(settings), k=k).search])


def solve(prompt: str, settings: HopsSettings, session: ToolSession) -> list[Message]:
    """One search for each hop, starting from what the last search found."""
    script = Script(session)
    at, chain = _read(prompt, settings)
    for relation in chain:
        short = settings.style == "short"
        result = script.call("search", query=f"{at} {relation}" if short else f"{relation} of {at}")
        fact = rf"\b{at} {relation} (\w+)" if short else rf"The {relation} of {at} is ([^.]+)\."
        match = re.search(fact, result)
        if match is None:
            raise RuntimeError(f"the search for the {relation} of {at} did not find it: {result!r}")
        at = match[1]
    return script.answer(at)


BUILTIN = Family(HopsSettings, make, "exact", {"casefold": True}, reserved, toolbox=toolbox, solve=solve)
