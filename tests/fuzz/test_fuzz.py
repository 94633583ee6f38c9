"""A small part of the fuzzing that ``python -m benchmarks.fuzz`` does: no traceback, no silent difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fuzz.artefacts import artefact_kinds
from helpers.fuzz.inputs import input_kinds
from helpers.fuzz.oracle import Kind, fuzz
from helpers.fuzz.packs import pack_kinds

SEEDS, FEW = range(50), range(6)
"""``FEW`` mutations of kinds whose readers generate or merge, which takes tens of milliseconds each."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory):
    """All kinds by their names; remembered fingerprints lie in a folder of these tests."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLWEAVE_CACHE", str(folder / "cache"))
        yield {
            kind.name: kind
            for kind in [
                *artefact_kinds(folder / "good"),
                *pack_kinds(folder / "packs"),
                *input_kinds(folder / "inputs"),
            ]
        }


PACKS = [
    "delta with files",
    "pack with files",
    "weave with files",
    "weave with backbone",
    "exported adapter",
    "pack exported",
    "pack, turned",
    "pack exported, turned",
    "pack, stacked",
    "pack exported, stacked",
    "pack, turned, mixed",
    "pack exported, turned, mixed",
    "pack, stacked, grouped",
    "adapter, dora",
    "adapter, saved",
    "adapter, tokens",
    "adapter, loha",
    "adapter, ia3",
    "adapter, oft",
]
NAMES = [
    "delta",
    "pack",
    "uncoded pack",
    "weave",
    "router",
    "adapter",
    "base",
    *PACKS,
    "rows.jsonl",
    "rows.json",
    "rows.jsonl.gz",
    "rows.csv",
    "rows.tsv",
    "rows.parquet",
    "traces.jsonl",
    "corpus.jsonl",
    "prompts.txt",
    "prompts.jsonl",
    "weave.yaml",
    "zip.yaml",
    "e3tir.yaml",
    "training.yaml",
    "tables.yaml",
    "task.yaml",
]


def test_all_kinds_are_fuzzed(kinds: dict[str, Kind]) -> None:
    assert list(kinds) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_refused_or_change_nothing(kinds: dict[str, Kind], tmp_path: Path, name: str) -> None:
    seeds = FEW if name in PACKS else SEEDS
    tally = fuzz(kinds[name], seeds, tmp_path / "work")
    assert tally.mutations == len(seeds)
    assert not tally.faults, "\n".join(tally.faults)
