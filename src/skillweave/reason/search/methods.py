"""The methods by name: what a user may write after ``--method``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from skillweave.config import Config
from skillweave.errors import UserError, nearest
from skillweave.reason.search.baselines import (
    BestOfNConfig,
    ConceptsConfig,
    RefinementConfig,
    RexConfig,
    search_best_of_n,
    search_concepts,
    search_refinement,
    search_rex,
)
from skillweave.reason.search.direct import DirectConfig
from skillweave.reason.search.frame import SearchFrame
from skillweave.reason.search.matsir import MatsirConfig, search_matsir
from skillweave.reason.solution import Ended

Form = Literal["program", "rule"]


@dataclass(frozen=True)
class SearchMethod:
    """A way to find the rule.

    - ``search``: None if the model answers the test inputs directly
    - ``form``: whether agents write the program at once, or first the rule in words; None: as the user sets it
    """

    about: str
    config: type[Config]
    search: Callable[[SearchFrame, Any], Awaitable[Ended]] | None
    form: Form | None = None
    defaults: tuple[tuple[str, Any], ...] = ()


SEARCH_METHODS: dict[str, SearchMethod] = {
    "matsir": SearchMethod("several agents and a Monte Carlo tree search", MatsirConfig, search_matsir),
    "rex": SearchMethod("refinement by Thompson sampling", RexConfig, search_rex),
    "refinement": SearchMethod("iterative refinement of rules in words", RefinementConfig, search_refinement, "rule"),
    "direct-python": SearchMethod("iterative refinement of programs", RefinementConfig, search_refinement, "program"),
    "best-of-n": SearchMethod("independent proposals", BestOfNConfig, search_best_of_n),
    "concepts": SearchMethod("a mixture of concepts: distinct rules first", ConceptsConfig, search_concepts, "rule"),
    "io": SearchMethod("direct answers, one for each test input", DirectConfig, None),
    "self-consistency": SearchMethod(
        "direct answers and a majority vote", DirectConfig, None, defaults=(("samples", None),)
    ),
}


def method_named(name: str) -> SearchMethod:
    """The method of that name. Raises :class:`UserError`."""
    if name not in SEARCH_METHODS:
        raise UserError(f"unknown method '{name}'; {nearest(name, SEARCH_METHODS)}")
    return SEARCH_METHODS[name]
