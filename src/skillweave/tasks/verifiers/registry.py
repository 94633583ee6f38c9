"""The table of verifiers, a weighted mix of several, and the function that scores an answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from skillweave.base.thoughts import strip_thoughts
from skillweave.config import Config, read_config
from skillweave.errors import UserError, nearest
from skillweave.tasks.verifiers import json_value, numeric
from skillweave.tasks.verifiers.code import CodeOptions, cases_problem, code
from skillweave.tasks.verifiers.json_value import JsonOptions, json_equal
from skillweave.tasks.verifiers.maths import MathOptions, maths
from skillweave.tasks.verifiers.maths import gold_problem as maths_gold_problem
from skillweave.tasks.verifiers.numeric import NumericOptions
from skillweave.tasks.verifiers.own import file_digest, own, own_options
from skillweave.tasks.verifiers.text import ExactOptions, RegexOptions, exact, regex_found, regex_gold_problem
from skillweave.tasks.verifiers.warn import warn_once

VERIFIERS: dict[str, tuple[type[Config], Callable[[str, Any, Any], float]]] = {
    "exact": (ExactOptions, exact),
    "numeric": (NumericOptions, numeric.numeric),
    "math": (MathOptions, maths),
    "json": (JsonOptions, json_equal),
    "regex": (RegexOptions, regex_found),
    "code": (CodeOptions, code),
}

MIX = "mix"

LONGEST = 200_000
"""Longest answer that is judged, in characters: about 50,000 tokens. Reading numbers takes 1 s per 50,000."""
LONGEST_THOUGHT = 4_000_000
"""Longest answer whose thoughts are removed before it is judged, in characters including the thoughts."""

Thoughts = Literal["strip", "keep"]
"""Whether the thoughts of a reasoning model are removed before its answer is judged."""


def _checked_name(name: str) -> str:
    if name in VERIFIERS or name == MIX or ":" in name:
        return name
    raise ValueError(
        f"there is no verifier '{name}'; {nearest(name, [*VERIFIERS, MIX])} (a verifier of your own is named "
        "package.module:function or path/to/file.py:function)"
    )


VerifierName = Annotated[str, AfterValidator(_checked_name)]
"""A name in :data:`VERIFIERS`, ``mix``, or a function of the user: ``module:function`` or ``file.py:function``."""


class MixPart(Config):
    """One verifier of a mix."""

    verifier: VerifierName = Field(description="The verifier's name.")
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Weight of its score, relative to the other parts."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The verifier's own options.")


class MixOptions(Config):
    """``mix``: the weighted mean of several verifiers' scores."""

    parts: tuple[MixPart, ...] = Field(description="The verifiers of the mix, at least two.")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if len(self.parts) < 2:
            raise ValueError(f"a mix needs at least 2 parts, found {len(self.parts)}")
        for number, part in enumerate(self.parts, 1):
            if part.verifier == MIX:
                raise ValueError(f"part {number} is itself a mix: list its parts here instead")
            try:
                options_for(part.verifier, part.options)
            except UserError as error:
                raise ValueError(f"part {number}: {error}") from error
        return self

    @cached_property
    def weighted(self) -> list[tuple[str, Config, float]]:
        """The name, the checked options and the share of every part; the shares add up to 1."""
        total = sum(part.weight for part in self.parts)
        return [(part.verifier, options_for(part.verifier, part.options), part.weight / total) for part in self.parts]


def options_for(name: str, settings: dict[str, Any]) -> Config:
    """Return the checked options of a verifier. Raises :class:`UserError` that names an unknown or wrong option."""
    if name == MIX:
        return read_config(MixOptions, settings, called="verifier 'mix'")
    if name in VERIFIERS:
        return read_config(VERIFIERS[name][0], settings, called=f"verifier '{name}'")
    return own_options(name, settings)


def code_options(options: Config) -> CodeOptions | None:
    """Return the options of ``code`` from checked options: its own, or those of a part of a mix; else None."""
    if isinstance(options, MixOptions):
        return next((own for _, own, _ in options.weighted if isinstance(own, CodeOptions)), None)
    return options if isinstance(options, CodeOptions) else None


def own_digests(name: str, settings: dict[str, Any]) -> list[str]:
    """Return the digests of the files with the user's own verifiers: of this one, or of the parts of a mix."""
    names = [part["verifier"] for part in settings["parts"]] if name == MIX else [name]
    return [file_digest(one) for one in names if ":" in one]


def verify(
    name: str, answer: str, gold: Any, options: Config, *, cases: Any = None, thoughts: Thoughts = "strip"
) -> float:
    """Return the score in [0, 1] that verifier ``name`` gives ``answer``.

    - ``gold``: a text, or a list of accepted texts, of which the best score counts. For ``code`` it is the row's cases.
    - ``cases``: the row's cases, if they are not in ``gold``; a mix takes them from here
    - ``thoughts``: whether thoughts are removed from the answer first

    An answer of white space only scores 0. So does one of more than :data:`LONGEST` characters, with one warning.
    Raises :class:`UserError` only if a verifier of the user fails.
    """
    if len(answer) <= LONGEST_THOUGHT and thoughts == "strip":
        answer = strip_thoughts(answer)
    if len(answer) > LONGEST:
        warn_once("long", f"an answer of {len(answer):,} characters scores 0: more than {LONGEST:,} are not judged")
        return 0.0
    return _score(name, answer, gold, options, cases) if answer.strip() else 0.0


def _score(name: str, answer: str, gold: Any, options: Config, cases: Any) -> float:
    if isinstance(options, MixOptions):
        return sum(share * _score(part, answer, gold, own, cases) for part, own, share in options.weighted)
    if name == "code":
        return code(answer, gold if cases is None else cases, options)  # type: ignore[arg-type]
    if isinstance(gold, list):
        return max((_score(name, answer, one, options, cases) for one in gold), default=0.0)
    return VERIFIERS[name][1](answer, gold, options) if name in VERIFIERS else own(answer, gold, options)  # type: ignore[arg-type]


def gold_problem(name: str, gold: Any, options: Config | None = None, *, cases: Any = None) -> str | None:
    """Return why no answer could ever match ``gold``, or None. Such a row is a mistake in the task, not of the model.

    ``gold`` is a text, or a list of texts that are all checked; for ``code`` it is the cases. Without ``options`` the
    verifier's defaults apply; a mix needs its options.
    """
    if isinstance(options, MixOptions):
        problems = (
            gold_problem(part, cases if part == "code" else gold, own_options_)
            for part, own_options_, _ in options.weighted
        )
        return next((problem for problem in problems if problem), None)
    if name == "code":
        return cases_problem(gold)
    if name not in VERIFIERS and name != MIX:
        return None  # only the function itself knows which answers it accepts
    if isinstance(gold, list):
        if not gold:
            return "the list of accepted answers is empty"
        return next((problem for one in gold if (problem := gold_problem(name, one, options))), None)
    if not isinstance(gold, str):
        return f"the answer must be a text, found {type(gold).__name__}"
    if name == "numeric":
        return numeric.gold_problem(gold, options if isinstance(options, NumericOptions) else None)
    if name == "math":
        return maths_gold_problem(gold, options if isinstance(options, MathOptions) else None)
    if name == "json":
        return json_value.gold_problem(gold)
    if name == "regex" and isinstance(options, RegexOptions):
        return regex_gold_problem(gold, options)
    return None
