"""What a built-in generator is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from skillweave.config import Config
from skillweave.tasks.verifiers import VerifierName


@dataclass(frozen=True)
class Builtin:
    """``make(rng, settings)`` gives a prompt and its only right answer; ``verifier`` compares an answer with it."""

    settings: type[Config]
    make: Callable[[Random, Any], tuple[str, str]]
    verifier: VerifierName
    options: Mapping[str, Any] = field(default_factory=dict)
