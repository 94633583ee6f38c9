"""A verifier of the user's own: a Python function, named by module or by file."""

from __future__ import annotations

import importlib.util
import numbers
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from skillweave.config import Config
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.tools.own_code import import_function

_function = lru_cache(maxsize=64)(import_function)


class OwnOptions(Config):
    """The options of a verifier of the user."""

    named: str = Field(description="The function: ``module:function`` or ``file.py:function``.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The function's third argument.")


def own_options(named: str, settings: dict[str, Any]) -> OwnOptions:
    """Import the function and return its options. Raises :class:`UserError` if the import fails."""
    _function(named, "the verifier")
    return OwnOptions(named=named, settings=settings)


def file_digest(named: str) -> str:
    """Return the SHA-256 of the file that contains the function; empty if there is no such file."""
    place = named.rpartition(":")[0]
    if not place.endswith(".py"):
        spec = importlib.util.find_spec(place)
        place = spec.origin if spec and spec.origin else ""
    return sha256_file(Path(place)) if Path(place).is_file() else ""


def own(answer: str, gold: Any, options: OwnOptions) -> float:
    """Return what the function returns for ``(answer, gold, settings)``, which must be a number in [0, 1].

    Raises :class:`UserError` if the function raises or returns anything else: a mistake in a verifier must not look
    like a wrong answer.
    """
    try:
        score = _function(options.named, "the verifier")(answer, gold, dict(options.settings))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit() would end a training as if it were done
        raise UserError(
            f"the verifier '{options.named}' raised {type(error).__name__}: {error} on the answer {answer[:60]!r} "
            f"(gold {gold!r:.60}): it must give a score from 0 to 1 for every text a model may write"
        ) from error
    if not isinstance(score, numbers.Real) or not 0 <= float(score) <= 1:  # also False for NaN
        raise UserError(
            f"the verifier '{options.named}' gave {score!r:.60} for the answer {answer[:60]!r} (gold {gold!r:.60}): "
            "it must give a number from 0 to 1"
        )
    return float(score)
