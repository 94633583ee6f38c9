"""What a built-in generator is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from pydantic import model_validator

from skillweave.config import Config
from skillweave.tasks.verifiers import VerifierName


class Span(Config):
    """Settings of a generator whose prompts hold from ``least`` to ``most`` of something."""

    least: int
    most: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is greater than most ({self.most})")
        return self


@dataclass(frozen=True)
class Builtin:
    """``make(rng, settings)`` gives a prompt and its only right answer; ``verifier`` compares an answer with it.

    ``held(prompt, settings)`` says which prompts are the test's alone, where that is more than being another prompt;
    ``make`` must give some of both.
    """

    settings: type[Config]
    make: Callable[[Random, Any], tuple[str, str]]
    verifier: VerifierName
    options: Mapping[str, Any] = field(default_factory=dict)
    held: Callable[[str, Any], bool] | None = None
