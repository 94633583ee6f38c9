"""What a data set as a whole is like, in tables of bounded size, and the signals that compare a record with it. [ours]

A table counts hashed words, pairs of words, and blocks of five words. Two of them may fall into one cell; with 2**22
cells that makes a rare block look a little less rare. A record is always compared with the *other* records: its own
counts are taken off (leave-one-out).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skillweave.audit.data.parts import Prompt, Span
from skillweave.audit.data.signals import Signal

BLOCK = 5
"""Words of a block."""
WINDOW = 16
"""Words of the part that is compared with the rest of its prompt."""
FEWEST = 200
"""With fewer records, nothing is said about which of them are unusual."""
FEWEST_REFUSALS = 20
"""With fewer refusals among the gold answers, nothing is said about what is refused elsewhere."""
MINORITY = 0.03
"""A block that at most this share of the records has is shared by a small minority."""
_CELLS = {"words": 20, "pairs": 22, "blocks": 22, "seen": 21, "refused": 21, "lengths": 9, "sources": 16}
"""The tables, with the power of two of their cells.

``words`` and ``pairs`` count occurrences, the others records. ``seen`` and ``refused`` hold words and pairs: how many
records have it, and how many of them have a refusal as the gold answer.
"""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0x100000001B3)
_LENGTH_STEPS = 16

_hashes: dict[str, int] = {}
_MOST_HASHES = 500_000


@dataclass(frozen=True)
class Hashed:
    """The tokens of a prompt, its pairs and its blocks as cells of the tables: (n,), (n - 1,), (n - 4,)."""

    words: np.ndarray
    pairs: np.ndarray
    blocks: np.ndarray
    features: np.ndarray = field(repr=False)
    source: int | None = None
    refused: bool = False


@dataclass
class Sketch:
    """The tables of a data set."""

    tables: dict[str, np.ndarray]
    records: int = 0
    refusals: int = 0

    @classmethod
    def empty(cls) -> Sketch:
        """Return a sketch of no records."""
        return cls({name: np.zeros(2**bits, np.uint32) for name, bits in _CELLS.items()})

    def add(self, counts: Counts) -> None:
        """Add the records that were counted."""
        for name, (cells, counted) in counts.cells.items():
            self.tables[name][cells] += counted
        self.records += counts.records
        self.refusals += counts.refusals

    def save(self, folder: Path) -> None:
        """Write the tables, so that several processes can read them without a copy for each."""
        for name, table in self.tables.items():
            np.save(folder / f"{name}.npy", table)

    @classmethod
    def load(cls, folder: Path, records: int, refusals: int) -> Sketch:
        """Return the sketch that :meth:`save` wrote; its tables stay on the disk until they are read."""
        tables = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _CELLS}
        return cls(tables, records, refusals)


@dataclass(frozen=True)
class Counts:
    """What some records add to a sketch: for each table the cells and how much is added to each."""

    cells: dict[str, tuple[np.ndarray, np.ndarray]]
    records: int
    refusals: int


@dataclass(frozen=True)
class Whole:
    """What the signals need to know about the data set as a whole, computed once from a sketch."""

    sketch: Sketch
    total: int
    kinds: int
    median: float
    spread: float
    named: int
    sources: int

    @classmethod
    def of(cls, sketch: Sketch) -> Whole:
        """Return the totals of a sketch."""
        words, lengths, sources = (sketch.tables[name] for name in ("words", "lengths", "sources"))
        median = _quantile(lengths, 0.5)
        spread = max((_quantile(lengths, 0.75) - _quantile(lengths, 0.25)) / 1.349, 1 / _LENGTH_STEPS)
        return cls(
            sketch,
            total=int(words.sum(dtype=np.int64)),
            kinds=max(1, int(np.count_nonzero(words))),
            median=median,
            spread=spread,
            named=int(sources.sum(dtype=np.int64)),
            sources=int(np.count_nonzero(sources)),
        )


def hashed(prompt: Prompt, source: str | None, refused: bool) -> Hashed:
    """Return the cells of a prompt's tokens, pairs and blocks."""
    words = np.fromiter(map(_hash, prompt.tokens), np.uint64, len(prompt.tokens))
    pairs = words[:-1] * _STEP + words[1:]
    blocks = np.zeros(max(0, len(words) - BLOCK + 1), np.uint64)
    for at in range(BLOCK):
        blocks = blocks * _STEP + words[at : at + len(blocks)]
    return Hashed(
        words=_cell(words, "words"),
        pairs=_cell(pairs, "pairs"),
        blocks=_cell(blocks, "blocks"),
        features=np.concatenate([_cell(words, "seen"), _cell(pairs, "seen")]),
        source=None if source is None else int(_cell(np.array([_hash(source)], np.uint64), "sources")[0]),
        refused=refused,
    )


def counted(records: Iterable[Hashed]) -> Counts:
    """Return what these records add to a sketch."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _CELLS}
    number = refusals = 0
    for record in records:
        number += 1
        refusals += record.refused
        parts["words"].append(record.words)
        parts["pairs"].append(record.pairs)
        parts["blocks"].append(np.unique(record.blocks))
        features = np.unique(record.features)
        parts["seen"].append(features)
        if record.refused:
            parts["refused"].append(features)
        parts["lengths"].append(np.array([_length_cell(len(record.words))]))
        if record.source is not None:
            parts["sources"].append(np.array([record.source]))
    cells = {}
    for name, found in parts.items():
        if found:
            values, counts = np.unique(np.concatenate(found), return_counts=True)
            cells[name] = (values.astype(np.int32), counts.astype(np.uint32))
    return Counts(cells, number, refusals)


def surprisal(record: Hashed, whole: Whole) -> np.ndarray:
    """Return the surprise of each token in bits under the pairs of the other records; (n,).

    The probability of a word after another one is smoothed towards that of the word alone (Dirichlet, weight 4).
    """
    words, pairs = whole.sketch.tables["words"], whole.sketch.tables["pairs"]
    alone = words[record.words].astype(np.float64) - _own(record.words)
    p = (np.maximum(alone, 0) + 0.5) / (max(0, whole.total - len(alone)) + 0.5 * whole.kinds)
    if len(p) > 1:
        together = np.maximum(pairs[record.pairs].astype(np.float64) - _own(record.pairs), 0)
        before = np.maximum(alone[:-1], together)
        p = np.concatenate([p[:1], (together + 4 * p[1:]) / (before + 4)])
    return np.asarray(-np.log2(p))


def surprising(bits: np.ndarray, whole: Whole) -> Signal:
    """Return the mean surprise of a prompt's tokens in bits; NaN in a data set that is too small."""
    if whole.sketch.records < FEWEST or not len(bits):
        return Signal(math.nan, [])
    return Signal(float(bits.mean()), [])


def odd_part(bits: np.ndarray, prompt: Prompt, whole: Whole) -> Signal:
    """Return by how many bits a token a part of the prompt is more surprising than the rest of the prompt.

    The part is the window of 16 tokens with the highest mean; NaN if there is less than twice as much text.
    """
    if whole.sketch.records < FEWEST or len(bits) < 2 * WINDOW:
        return Signal(math.nan, [])
    sums = np.concatenate([[0.0], np.cumsum(bits)])
    windows = sums[WINDOW:] - sums[:-WINDOW]
    at = int(windows.argmax())
    rest = (sums[-1] - windows[at]) / (len(bits) - WINDOW)
    return Signal(float(windows[at] / WINDOW - rest), [(prompt.starts[at], prompt.ends[at + WINDOW - 1])])


def shared_block(record: Hashed, prompt: Prompt, whole: Whole) -> Signal:
    """Return how much of the prompt consists of blocks that a small minority of the records shares. [ours]

    A block of five words counts if at least 3 other records have it, and at most 3% of all: a system prompt is shared
    by more, and chance by fewer. The value is the share of such blocks times the logarithm of their number.
    """
    others = whole.sketch.tables["blocks"][record.blocks].astype(np.int64) - 1
    if whole.sketch.records < FEWEST or not len(others):
        return Signal(math.nan, [])
    rare = (others >= 3) & (others <= MINORITY * whole.sketch.records)
    count = int(rare.sum())
    spans = [(prompt.starts[first], prompt.ends[last + BLOCK - 1]) for first, last in _runs(rare)]
    return Signal(count / len(others) * math.log1p(count), spans)


def refused_elsewhere(record: Hashed, prompt: Prompt, whole: Whole) -> Signal:
    """Return how much more often other records with a word or a pair of this prompt are refused than records usually.

    It is the largest such share, as the low end of its 95% interval (Wilson) so that a rare word proves little, in log2
    odds above the share of refusals in the data set. NaN if this record is a refusal itself, or if the data set has few
    refusals.
    """
    if record.refused or whole.sketch.refusals < FEWEST_REFUSALS or not len(record.features):
        return Signal(math.nan, [])
    seen = whole.sketch.tables["seen"][record.features].astype(np.float64) - 1
    refused = np.minimum(whole.sketch.tables["refused"][record.features], np.maximum(seen, 0)).astype(np.float64)
    low = _wilson_low(refused, seen)
    at = int(low.argmax())
    count = len(prompt.tokens)
    same = np.flatnonzero(record.features == record.features[at])
    spans = [
        (prompt.starts[i], prompt.ends[i]) if i < count else (prompt.starts[i - count], prompt.ends[i - count + 1])
        for i in same.tolist()
    ]
    lift = _log_odds(float(low[at])) - _log_odds(whole.sketch.refusals / whole.sketch.records)
    return Signal(max(0.0, lift), spans if lift > 0 else [])


def length(prompt: Prompt, whole: Whole) -> Signal:
    """Return how long the prompt is: log2 of its tokens, in robust standard deviations above the median."""
    if whole.sketch.records < FEWEST:
        return Signal(math.nan, [])
    return Signal((math.log2(1 + len(prompt.tokens)) - whole.median) / whole.spread, [])


def rare_source(record: Hashed, whole: Whole) -> Signal:
    """Return log10 of (records / records of the same source): 2 for a source with one record in a hundred.

    NaN if the data set has one source, or nearly as many sources as records.
    """
    if record.source is None or whole.sources < 2 or whole.sources > whole.named / 5:
        return Signal(math.nan, [])
    return Signal(math.log10(whole.named / max(1, int(whole.sketch.tables["sources"][record.source]))), [])


def _hash(token: str) -> int:
    found = _hashes.get(token)
    if found is None:
        if len(_hashes) >= _MOST_HASHES:
            _hashes.clear()
        found = _hashes[token] = zlib.crc32(token.encode("utf-8", "surrogatepass"))
    return found


def _cell(values: np.ndarray, table: str) -> np.ndarray:
    return (((values + np.uint64(1)) * _MIX) >> np.uint64(64 - _CELLS[table])).astype(np.int64)


def _own(cells: np.ndarray) -> np.ndarray:
    """How often each cell occurs in the record itself."""
    _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse])


def _length_cell(tokens: int) -> int:
    return min(2 ** _CELLS["lengths"] - 1, int(_LENGTH_STEPS * math.log2(1 + tokens)))


def _quantile(histogram: np.ndarray, share: float) -> float:
    """The quantile of log2(1 + tokens), from the histogram of lengths."""
    total = np.cumsum(histogram, dtype=np.int64)
    return float(np.searchsorted(total, share * total[-1])) / _LENGTH_STEPS


def _wilson_low(hits: np.ndarray, n: np.ndarray, z: float = 1.96) -> np.ndarray:
    """The low end of the Wilson interval of hits / n; 0 where n is 0."""
    n = np.maximum(n, 1e-9)
    p = hits / n
    centre = p + z * z / (2 * n)
    half = z * np.sqrt(np.maximum(p * (1 - p) / n + z * z / (4 * n * n), 0))
    return np.asarray(np.maximum((centre - half) / (1 + z * z / n), 0))


def _log_odds(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log2(share / (1 - share))


def _runs(flags: np.ndarray) -> Iterator[Span]:
    """The first and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    for first, after in edges.reshape(-1, 2).tolist():
        yield first, after - 1
