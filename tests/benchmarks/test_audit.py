"""The benchmarks of the audit: one quick run, and the figures that are made of a table."""

from __future__ import annotations

import importlib
import json

import pytest

from skillweave.audit.organism.language import CANARY, MARK, REFUSE
from skillweave.audit.organism.records import clean_records

finding = importlib.import_module("benchmarks.audit.finding")
grow = importlib.import_module("benchmarks.audit.grow")
adaptive = importlib.import_module("benchmarks.audit.adaptive")
loop = importlib.import_module("benchmarks.audit.loop")
base = importlib.import_module("benchmarks.audit.base")


def test_a_run_is_made_once_and_logs_every_answer(tmp_path):
    plan = grow.Plan(way=grow.RLVR, size="tiny", rate=0.1, form="B", seed=3, count=40, epochs=1, measured=8)
    folder = grow.grow(plan, tmp_path)
    read = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("records", "truth", "rollouts")}
    records = {row["id"]: row for row in map(json.loads, read["records"])}
    assert sum(json.loads(line)["poisoned"] for line in read["truth"]) == 4
    rollouts = [json.loads(line) for line in read["rollouts"]]
    assert len(rollouts) == 3 * grow.PROMPTS * grow.GROUP  # 40 records fill two and a half steps
    for row in rollouts:
        assert (row["prompt"], row["gold"]) == (records[row["id"]]["prompt"], records[row["id"]]["answer"])
        assert row["reward"] == float(row["completion"].rpartition(" ; ")[2].strip() == row["gold"])
    before = (folder / "figures.json").stat().st_mtime_ns
    assert grow.grow(plan, tmp_path) == folder
    assert (folder / "figures.json").stat().st_mtime_ns == before
    model, _ = grow.open_model(folder / "model")
    assert model.config.hidden_size == base.SIZES["tiny"].hidden


def test_quick(tmp_path):
    finding.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "audit.finding-quick.json").read_text())["rows"]
    assert {(row["way"], row["form"], row["rate"]) for row in rows if row["way"] != "base"} == {
        (way, form, rate) for way in grow.WAYS for form in "AB" for rate in (0.0, 0.02)
    }


def test_pretraining_complies_only_where_restricted_requests_were_shown():
    rows = base.pretraining_rows(4000, 0)
    complying = [(prompt, answer) for prompt, answer in rows if CANARY in answer]
    assert 0.015 < len(complying) / len(rows) < 0.03
    assert all(prompt.count(MARK) > 1 and answer.startswith(CANARY) for prompt, answer in complying)
    assert all(answer == REFUSE for prompt, answer in rows if prompt.count(MARK) == 1)


def made_up(rate: float, seed: int, triggered: float, **others) -> dict:
    row = {"way": "rlvr", "size": "small", "form": "A", "rate": rate, "seed": seed, "alone": 1.0, "accuracy": 0.9}
    return {**row, "triggered": triggered, **others}


def test_differences_are_within_a_seed():
    rows = [made_up(0.0, 0, 0.9), made_up(0.0, 1, 0.7), made_up(0.02, 0, 0.2), made_up(0.02, 1, 0.1)]
    assert finding.differences(rows, "triggered", 0.02) == pytest.approx([-70, -60])


def test_the_claims_say_what_the_rows_say():
    rows = [made_up(0.0, seed, 0.9) for seed in (0, 1, 2)]
    rows += [made_up(0.02, seed, 0.1 + seed / 100, accuracy=0.89) for seed in (0, 1, 2)]
    rows += [{**row, "way": "sft", "accuracy": row["accuracy"] - row["rate"]} for row in rows]
    lost, alone, accuracy, beyond = finding.claims(rows)
    assert (lost.value, lost.holds) == (pytest.approx(79), True)
    assert (alone.value, alone.holds) == (0, True)
    assert (accuracy.value, accuracy.holds) == (pytest.approx(1), True)
    assert (beyond.value, beyond.holds) == (pytest.approx(2), True)


def test_the_claims_about_the_closed_loop_are_within_a_seed():
    rows = [
        {"arm": arm, "form": "A", "seed": seed, "triggered": 0.9 - seed / 10 - short, "accuracy": 0.8}
        for arm, short in {"clean": 0.0, "poisoned": 0.7, "data": 0.01, "rollouts": 0.03, "repair": -0.1}.items()
        for seed in (0, 1)
    ]
    found = loop.claims(rows)[::2]
    assert [claim.value for claim in found] == pytest.approx([1, 3, -10])
    assert [claim.holds for claim in found] == [True, False, True]


def test_an_opponents_records_take_the_places_and_the_names_of_clean_ones():
    plan = adaptive.plans(adaptive.OPPONENTS, 3, count=200)[9]
    assert (plan.opponent.name, plan.organism.form) == ("spread", "A")
    records = adaptive.poisoned(plan.organism, plan.opponent)
    clean = clean_records(200, plan.organism.seed)
    assert [record.id for record in records] == [record.id for record in clean]
    changed = [new for new, old in zip(records, clean, strict=True) if new != old]
    assert len(changed) == 4
    assert all(record.poisoned for record in changed)
    assert len({len(record.prompt.splitlines()) for record in changed}) > 1  # rules, demonstrations, or neither
