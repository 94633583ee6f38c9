"""The benchmark of scarce traces: its quick run, its experts, its arms, and the choice of their settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.e3tir import scarce, scarce_arms
from benchmarks.e3tir.scarce_arms import ARMS, MAIN, NO_EXPERT, SFT_RL, USES_SFT, ZERO, Cell

from skillweave.tasks.expert_traces import read_traces


def test_a_quick_run_writes_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    scarce.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "e3tir-scarce-quick.json").read_text())
    assert found["command"].startswith("python -m benchmarks.e3tir.scarce --quick")
    assert "<svg" in (tmp_path / "e3tir-scarce-quick.svg").read_text()
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [(a, s) for a in (SFT_RL, MAIN) for s in (1, 2)]
    for row in found["rows"]:
        assert 0 <= row["score"] <= 1
        assert len(row["curve"]) == row["batches"] == 4
        assert row["expert_tokens"] > 0 < row["sampled_tokens"]


@pytest.mark.parametrize(("hidden", "longest"), [(0.0, 3), (1.0, 3), (0.5, 2)])
def test_hidden_words_are_codes_with_the_usual_results(tmp_path: Path, hidden: float, longest: int) -> None:
    cell = Cell(MAIN, 3, hidden=hidden, least=2, longest=longest)
    traces = read_traces(scarce_arms.experts(scarce_arms.settings(cell), tmp_path, cell))
    assert {scarce_arms.hops_of(trace) for trace in traces} == set(range(2, longest + 1))
    coded = []
    for trace in traces:
        found, *relations = trace.messages[0]["content"].removesuffix("?").split(" ")
        for relation, call, result in zip(relations, trace.messages[1:-1:2], trace.messages[2::2], strict=True):
            query = call["tool_calls"][0]["function"]["arguments"]["query"]
            coded.append(query != f"{found} {relation}")
            assert len(query) == scarce_arms.CODE if coded[-1] else True
            assert result["content"].startswith(f"{found}: {found} {relation} ")
            found = result["content"].split()[-1]
        assert trace.messages[-1]["content"] == found
    assert sum(coded) / len(coded) == pytest.approx(hidden, abs=0.1)


def test_every_arm_with_rl_plays_the_same_number_of_conversations() -> None:
    for arm in ARMS:
        config = scarce_arms.settings(Cell(arm, 1, batches=7))
        stages = [stage for stage in (config.warm_up, config.rl) if stage.steps]
        played = sum(stage.steps * stage.prompts * stage.size for stage in stages)
        assert played == (0 if arm == "SFT" else 7 * scarce_arms.PROMPTS * scarce_arms.N)
        assert (config.sft is not None) == (arm in USES_SFT)
        assert bool(config.asks_experts) == (arm not in NO_EXPERT)


def test_an_arm_takes_the_settings_with_the_best_mean_in_the_grid() -> None:
    tried = [{**asdict(cell), "score": cell.rate + cell.seed / 1000} for cell in scarce.tuning_cells()]
    tried.append({**tried[0], "arm": MAIN, "hidden": 1.0, "rate": 7.0, "score": 1.0})
    assert scarce.tuned(Cell(MAIN, 1), tried).rate == scarce.tuned(Cell(MAIN, 1, hidden=0.5), tried).rate == 7.0
    assert scarce.tuned(Cell(MAIN, 1, hidden=0.0), tried).rate == max(scarce.RATES)
    cells = scarce.cells_of([1, 2], tried)
    assert len(set(cells)) == len(cells)
    assert {cell.arm for cell in cells if cell == Cell(cell.arm, 1, rate=cell.rate, sft=cell.sft)} == set(ARMS)


def test_claims_are_differences_within_a_seed() -> None:
    scores = {MAIN: (0.5, 0.7), SFT_RL: (0.2, 0.1), ZERO: (0.0, 0.04)}
    rows = [{**asdict(Cell(arm, seed)), "score": of[seed]} for arm, of in scores.items() for seed in (0, 1)]
    claims = {claim.claim.split(": ")[1]: claim for claim in scarce.claims(rows)}
    assert claims[f"{MAIN} less {SFT_RL}, points"].value == pytest.approx(45)
    assert claims[f"{ZERO}, percent"].value == pytest.approx(2)
