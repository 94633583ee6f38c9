"""The verifiers agree with the rulings that a person gives, but for the disagreements that are explained.

A row of ``rulings/*.jsonl`` is an answer as people and models write it: ``verifier``, ``answer``, ``gold``, ``options``
and ``ruling``, the score that a person would give. Where the verifier is known to give another, ``given`` says which
and ``why``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skillweave.tasks.verifiers import gold_problem, options_for, verify

FOLDER = Path(__file__).parent / "rulings"


def rulings(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_verifiers_agree_with_people(path: Path) -> None:
    wrong = []
    for row in rulings(path):
        options = options_for(row["verifier"], row.get("options", {}))
        assert gold_problem(row["verifier"], row["gold"], options) is None, row
        score = verify(row["verifier"], row["answer"], row["gold"], options)
        if score != pytest.approx(row.get("given", row["ruling"])):
            wrong.append({**row, "score": score})
    assert wrong == []


def test_every_disagreement_is_one_and_is_explained() -> None:
    rows = [row for path in FOLDER.glob("*.jsonl") for row in rulings(path)]
    known = [row for row in rows if "given" in row]
    assert all(row["given"] != row["ruling"] and row["why"] for row in known)
    assert len(rows) > 600
    assert len(known) < len(rows) / 100
    keys = [json.dumps([row["verifier"], row["answer"], row["gold"], row.get("options", {})]) for row in rows]
    assert len(set(keys)) == len(keys)
