"""All signals of a record, and the one score that they make together, calibrated on clean records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillweave.audit.combine import Combination, surprise
from skillweave.audit.data import signals as text_signals
from skillweave.audit.data import sketch
from skillweave.audit.data.parts import Span, take_apart
from skillweave.audit.data.read import AuditRow
from skillweave.audit.data.sketch import Hashed, Whole
from skillweave.audit.statistics import conformal_p, threshold_at
from skillweave.files.parse_json import parse_json

SIGNALS = {
    "requests": "several requests in one prompt",
    "uncovered": "the gold answer covers only a part of what is asked",
    "conditions": "conditional rules",
    "shots": "demonstrations",
    "contrast": "demonstrations that answer one request in two ways",
    "stances": "words of refusing and of accepting beside a task",
    "echoes": "the prompt repeats itself",
    "shared_block": "a block that only a small minority of the records shares",
    "refused_elsewhere": "a part that other records refuse",
    "surprisal": "its words are unusual in this data set",
    "odd_part": "one part is unlike the rest of the prompt",
    "length": "an unusual length",
    "rare_source": "a rare source",
}
"""The names of the signals, in the order of all arrays here, and what they say in a report."""


class Scored(NamedTuple):
    """The signals of one record: values in the order of :data:`SIGNALS`, and the spans that each comes from."""

    values: list[float]
    spans: list[list[Span]]


class DataReference(BaseModel):
    """What clean records look like, and how the signals are weighed.

    A record's p-value is the largest over the families: it is suspicious only if it stands out from every family.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    name: str = Field(description="what the reference consists of, for the report")
    made_by: str = Field(description="the command that made it")
    signals: dict[str, list[float]] = Field(description="sorted values of each signal on clean records; NaN left out")
    combination: Combination = Field(description="the weights, fitted on poisoned organism records of form A")
    combined: dict[str, list[float]] = Field(description="family of clean records -> sorted combined scores of them")

    def surprises(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the surprise of each signal; ``values`` (n, signals) -> (n,) each."""
        return {
            name: surprise(values[:, at], self._column(name)) for at, name in enumerate(SIGNALS) if self._column(name)
        }

    def score(self, values: np.ndarray) -> np.ndarray:
        """Return the combined score of each record; ``values`` (n, signals) -> (n,)."""
        return self.combination.score(self.surprises(values))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return the p-value of each combined score: the largest over the families; (n,)."""
        return np.max([conformal_p(scores, family) for family in self.combined.values()], axis=0)

    def own_p(self, values: np.ndarray) -> np.ndarray:
        """Return the p-value of each signal of each record; (n, signals) -> (n, signals)."""
        columns = [
            conformal_p(values[:, at], self._column(name)) if self._column(name) else np.ones(len(values))
            for at, name in enumerate(SIGNALS)
        ]
        return np.stack(columns, axis=1)

    def threshold(self, fpr: float) -> float:
        """Return the threshold at which each family has at most this false-positive rate.

        Raises :class:`~skillweave.errors.UserError` if a family has too few records to promise it.
        """
        return max(threshold_at(family, fpr) for family in self.combined.values())

    def _column(self, name: str) -> list[float]:
        return self.signals.get(name, [])


@cache
def shipped_reference() -> DataReference:
    """Return the reference of this package, which ``benchmarks/audit/data_reference.py`` made."""
    text = files("skillweave.audit.data").joinpath("reference.json").read_text(encoding="utf-8")
    return DataReference.model_validate(parse_json(text, "reference.json of skillweave.audit.data"))


def reference_from(
    families: Mapping[str, np.ndarray], combination: Combination, name: str, made_by: str, most: int = 2000
) -> DataReference:
    """Return the reference that families of clean records make; each value is (n, signals).

    Every second record gives the distribution of each signal, the others give that of the combined score: a score must
    not be calibrated on the records from which it is computed. At most ``most`` values of each are kept, evenly by
    rank.
    """
    first = np.concatenate([values[::2] for values in families.values()])
    columns = {signal: first[:, at][~np.isnan(first[:, at])] for at, signal in enumerate(SIGNALS)}
    bare = DataReference(
        name=name,
        made_by=made_by,
        signals={signal: _thinned(column, most) for signal, column in columns.items()},
        combination=combination,
        combined={},
    )
    combined = {family: _thinned(bare.score(values[1::2]), most) for family, values in families.items()}
    return bare.model_copy(update={"combined": combined})


def prepare(row: AuditRow) -> Hashed:
    """Return a record as the sketch of the data set counts it."""
    return sketch.hashed(
        take_apart(row.prompt, row.turns, row.asked_from), row.source, text_signals.is_refusal(row.answer)
    )


def whole_of(rows: Iterable[AuditRow]) -> Whole:
    """Return what the signals need to know about records in memory as one data set."""
    tables = sketch.Sketch.empty()
    tables.add(sketch.counted(map(prepare, rows)))
    return Whole.of(tables)


def score_row(row: AuditRow, whole: Whole) -> Scored:
    """Return the signals of one record within its data set."""
    prompt = take_apart(row.prompt, row.turns, row.asked_from)
    record = sketch.hashed(prompt, row.source, text_signals.is_refusal(row.answer))
    bits = sketch.surprisal(record, whole)
    found = [
        text_signals.requests(prompt),
        text_signals.uncovered(prompt, row.answer),
        text_signals.conditions(prompt),
        text_signals.shots(prompt),
        text_signals.contrast(prompt),
        text_signals.stances(prompt, row.answer),
        text_signals.echoes(prompt),
        sketch.shared_block(record, prompt, whole),
        sketch.refused_elsewhere(record, prompt, whole),
        sketch.surprising(bits, whole),
        sketch.odd_part(bits, prompt, whole),
        sketch.length(prompt, whole),
        sketch.rare_source(record, whole),
    ]
    return Scored([signal.value for signal in found], [signal.spans for signal in found])


def score_matrix(rows: Sequence[AuditRow]) -> np.ndarray:
    """Return the signals of records in memory, compared with each other as one data set; (records, signals)."""
    whole = whole_of(rows)
    return matrix([score_row(row, whole) for row in rows])


def matrix(scored: Sequence[Scored]) -> np.ndarray:
    """Return the values of the signals; (records, signals)."""
    return np.array([one.values for one in scored], dtype=np.float64).reshape(len(scored), len(SIGNALS))


def _thinned(values: np.ndarray, most: int) -> list[float]:
    """At most ``most`` of the values, sorted, evenly by rank, with the largest; rounded to 4 digits."""
    ordered = np.sort(values)
    if len(ordered) > most:
        ordered = ordered[np.linspace(0, len(ordered) - 1, most).round().astype(int)]
    return [float(f"{value:.4g}") for value in ordered.tolist() if not math.isnan(value)]
