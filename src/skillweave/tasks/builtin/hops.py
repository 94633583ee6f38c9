"""Questions whose answer is several facts away, over a corpus of people and places that are invented.

Nothing can be known by heart: names come from the world's seed, and every fact is one document to be searched for.
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
from skillweave.tools.toolbox import Session, Toolbox

_RELATIONS = ("mentor", "neighbour", "rival", "doctor", "cousin", "tailor", "landlord", "guide")
_BIRTHPLACE = "birthplace"
_ASKED = re.compile(r"(?:Who|What) is the (.+) of (\w+ \w+)\? Answer with the name only\.")


class Settings(Span):
    """Questions of ``least`` to ``most`` hops over one world; other worlds have other names and other facts."""

    least: int = Field(2, ge=1, le=8)
    most: int = Field(3, ge=1, le=8)
    world: int = Field(0, ge=0)
    """The seed of the invention."""
    people: int = Field(60, ge=3, le=1000)
    places: int = Field(10, ge=0, le=200)
    """Where there are some, everybody has a birthplace, which may be the last thing a question asks for."""
    relations: int = Field(4, ge=1, le=len(_RELATIONS))
    """How many relations there are between people; each person has each of them to exactly one other."""
    style: Literal["question", "short"] = "question"
    """``Who is the rival of the mentor of Oresa Vindal? ...``, or ``bor ku ze?`` (who is bor's ku's ze?)."""
    k: int | None = Field(None, ge=1)
    """Documents that a search gives. None: 3, for short 1."""

    @model_validator(mode="after")
    def _far_enough(self) -> Self:
        if self.people < self.most + 2:
            raise ValueError(f"{self.most} hops need at least {self.most + 2} people, found {self.people}")
        return self


@dataclass(frozen=True)
class World:
    """``facts[who, relation]`` is who or what stands in that relation to ``who``; ``relations`` are between people."""

    people: tuple[str, ...]
    relations: tuple[str, ...]
    birthplace: str
    facts: dict[tuple[str, str], str]


@lru_cache(maxsize=8)
def world_of(settings: Settings) -> World:
    """The world that the settings name: a pure function of ``world``, ``people``, ``places``, ``relations``, ``style``.

    Each relation leads round one circle of all people, so everyone is equally often the answer, no one is related to
    themselves, and the same relation over and over comes back only after everybody else.
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


def documents(settings: Settings) -> list[dict[str, str]]:
    """One document a fact: ``{"title": who, "text": the fact}``, those of one person apart from each other."""
    rows = []
    for (who, relation), other in world_of(settings).facts.items():
        short = settings.style == "short"
        text = f"{who} {relation} {other}" if short else f"The {relation} of {who} is {other}."
        rows.append({"title": who, "text": text})
    return rows


def _draw(rng: Random, settings: Settings) -> tuple[str, list[str], str]:
    """A start, the relations from there on, and where they lead; no one is met twice, so no hop is in vain."""
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


def make(rng: Random, settings: Settings) -> tuple[str, str]:
    """``Who is the rival of the mentor of Oresa Vindal? Answer with the name only.`` -> ``Tamo Kershov``."""
    start, chain, answer = _draw(rng, settings)
    if settings.style == "short":
        return f"{' '.join([start, *chain])}?", answer
    asks = "What" if chain[-1] == _BIRTHPLACE else "Who"
    return f"{asks} is the {' of the '.join(reversed(chain))} of {start}? Answer with the name only.", answer


def _read(prompt: str, settings: Settings) -> tuple[str, list[str]]:
    """The start and the relations of a prompt, in the order they are looked up."""
    if settings.style == "short":
        start, *chain = prompt.removesuffix("?").split(" ")
        return start, chain
    asked = _ASKED.fullmatch(prompt)
    assert asked is not None
    return asked[2], asked[1].split(" of the ")[::-1]


def held(prompt: str, settings: Settings) -> bool:
    """Whether a question is the test's: it is where it starts at one of the first fifth of the people."""
    start, _ = _read(prompt, settings)
    people = world_of(settings).people
    return start in people[: max(1, len(people) // 5)]


def toolbox(settings: Settings) -> Toolbox:
    """Search over the world's documents."""
    k = settings.k or (1 if settings.style == "short" else 3)
    return Toolbox([Search(documents(settings), k=k).search])


def solve(prompt: str, settings: Settings, session: Session) -> list[Message]:
    """One search a hop, each for what the last one found."""
    script = Script(session)
    at, chain = _read(prompt, settings)
    for relation in chain:
        short = settings.style == "short"
        found = script.call("search", query=f"{at} {relation}" if short else f"{relation} of {at}")
        fact = rf"\b{at} {relation} (\w+)" if short else rf"The {relation} of {at} is ([^.]+)\."
        said = re.search(fact, found)
        if said is None:
            raise RuntimeError(f"the search for the {relation} of {at} did not find it: {found!r}")
        at = said[1]
    return script.answer(at)


BUILTIN = Family(Settings, make, "exact", {"casefold": True}, held, toolbox=toolbox, solve=solve)
