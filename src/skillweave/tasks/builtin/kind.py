"""The parts of a built-in generator: :class:`Builtin`, and a base class for settings with a range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from pydantic import Field, model_validator

from skillweave.config import Config
from skillweave.tasks.verifiers import VerifierName


class Span(Config):
    """Base settings of a generator whose prompts hold from ``least`` to ``most`` of something."""

    least: int = Field(description="the least of it in a prompt")
    most: int = Field(description="the most of it in a prompt")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is greater than most ({self.most})")
        return self


@dataclass(frozen=True)
class Builtin:
    """A generator and how its answers are checked.

    * ``make(rng, settings)`` returns a prompt and its only right answer; ``verifier`` compares an answer with it
    * ``options`` are the verifier's options
    * ``reserved(prompt, settings)`` says whether a prompt is reserved for the test split; ``make`` must return prompts
      of both kinds. None: any distinct prompt may be in any split
    """

    settings: type[Config]
    make: Callable[[Random, Any], tuple[str, str]]
    verifier: VerifierName
    options: Mapping[str, Any] = field(default_factory=dict)
    reserved: Callable[[str, Any], bool] | None = None
