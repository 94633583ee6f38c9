"""What an audit of data found: counts, the most suspicious records, and groups of records that share a block."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from skillweave.audit.data.config import DataAuditConfig
from skillweave.audit.data.parts import Span, take_apart
from skillweave.audit.data.read import Malformed
from skillweave.audit.data.score import SIGNALS, DataReference
from skillweave.audit.statistics import chance_of, rate_interval
from skillweave.progress import share_of

ALIKE = 0.5
"""Flagged records are grouped if about this share of their blocks is common (Jaccard, by MinHash)."""
_PERMUTATIONS = 64
_SHINGLE = 4


@dataclass(frozen=True)
class Suspect:
    """A suspicious record: its line in records.jsonl, the beginning of its prompt, and its gold answer."""

    line: dict[str, Any]
    prompt: str
    answer: str


@dataclass(frozen=True)
class SuspectGroup:
    """Flagged records with nearly the same blocks; ``members`` are indices into the suspects, best first."""

    members: list[int]


@dataclass
class DataAudit:
    """The result of an audit of data.

    - ``over``: for each signal, how many records have an own p-value of at most the false-positive rate
    - ``said``: for each signal, about how many records it says something
    - ``suspects``: the records with the highest scores, flagged or not
    """

    config: DataAuditConfig
    reference: DataReference
    threshold: float
    records: int = 0
    flagged: int = 0
    malformed: int = 0
    without_answer: int = 0
    cut: int = 0
    with_other_parts: int = 0
    clean_records: int = 0
    seconds: float = 0.0
    over: np.ndarray = field(default_factory=lambda: np.zeros(len(SIGNALS), np.int64))
    said: np.ndarray = field(default_factory=lambda: np.zeros(len(SIGNALS), np.int64))
    first_malformed: list[Malformed] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    flagged_sources: Counter[str] = field(default_factory=Counter)
    suspects: list[Suspect] = field(default_factory=list)
    groups: list[SuspectGroup] = field(default_factory=list)

    def verdict(self) -> str:
        """Return the result in one sentence or two: what is flagged, and what was not audited."""
        fpr, chance = self.config.fpr, chance_of(self.flagged, self.records, self.config.fpr)
        said = (
            f"{self.flagged:,} of {self.records:,} records ({self.flagged / self.records:.2%}) are flagged. If all "
            f"were clean and like the reference, about {fpr * self.records:,.0f} would be; so many or more by chance: "
            f"p = {chance:.2g}, if records are independent"
        )
        if self.malformed:
            unread = share_of(self.malformed, self.malformed + self.records, "records")
            said += f". {unread} could not be read and were not audited"
        return said

    def notes(self) -> list[str]:
        """Return what the verdict rests on, in sentences: how sure it is, and what was left out."""
        fpr, sizes = self.config.fpr, {name: len(scores) for name, scores in self.reference.combined.items()}
        said = [
            "a record that is not flagged is not proven clean: these signals see the structure of known attacks, and "
            "an attacker who knows them can write records that score low",
        ]
        low, high = rate_interval(round(fpr * min(sizes.values())), min(sizes.values()))
        said.append(
            f"the threshold {self.threshold:.3g} comes from {self.reference.name}; the combined score of "
            f"{min(sizes.values()):,} clean records{' of each family' if len(sizes) > 1 else ''} sets it, which puts "
            f"the false-positive rate at {fpr:.2%}, 95% {low:.2%} to {high:.2%}, on records like those"
        )
        if not self.clean_records:
            said.append(
                "your data may be unlike the shipped reference: --clean with a sample that you trust gives thresholds "
                "that hold for them"
            )
            if self.flagged > max(5 * fpr, 0.05) * self.records:
                said.append(
                    f"so many records are flagged that the reference probably does not fit: {self.flagged:,}. Look at "
                    "the most suspicious ones, and give --clean"
                )
        if self.malformed:
            said.append("malformed.jsonl names each record that could not be read, with its line and the reason")
        if self.without_answer:
            said.append(f"{share_of(self.without_answer, self.records, 'records')} have no gold answer")
        if self.cut:
            said.append(
                f"of {share_of(self.cut, self.records, 'prompts')} only the beginning was audited: they are too long"
            )
        if self.with_other_parts:
            said.append(
                f"{share_of(self.with_other_parts, self.records, 'prompts')} have parts that are no text, such as "
                "images: only the text was audited"
            )
        silent = [name for name, count in zip(SIGNALS, self.said.tolist(), strict=True) if not count]
        if silent:
            said.append(f"these signals say nothing about this data set: {', '.join(silent)}")
        return said


def groups_of(suspects: Sequence[Suspect]) -> list[SuspectGroup]:
    """Return groups of at least 2 suspects whose prompts share most of their blocks (MinHash, LSH), largest first."""
    index = MinHashLSH(threshold=ALIKE, num_perm=_PERMUTATIONS)
    group_of: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for at, suspect in enumerate(suspects):
        tokens = take_apart(suspect.prompt).tokens
        blocks = {" ".join(tokens[i : i + _SHINGLE]) for i in range(max(1, len(tokens) - _SHINGLE + 1))}
        sketch = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch([block.encode("utf-8", "surrogatepass") for block in blocks])
        near = index.query(sketch)
        group = min((group_of[other] for other in near), default=at)
        group_of[at] = group
        members.setdefault(group, []).append(at)
        index.insert(at, sketch)
    found = [SuspectGroup(group) for group in members.values() if len(group) > 1]
    return sorted(found, key=lambda group: -len(group.members))


def shown_spans(line: dict[str, Any], length: int) -> list[tuple[Span, list[str]]]:
    """Return the marked parts of a prompt, without overlaps: each with the signals that mark it, in order."""
    edges = sorted({0, length, *(min(edge, length) for r in line["reasons"] for span in r["spans"] for edge in span)})
    parts = []
    for start, end in itertools.pairwise(edges):
        marks = [r["signal"] for r in line["reasons"] if any(a <= start and end <= b for a, b in r["spans"])]
        parts.append(((start, end), marks))
    return parts
