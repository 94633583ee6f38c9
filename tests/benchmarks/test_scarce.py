"""The benchmark of scarce traces: its quick run, its experts, its arms, and the choice of their settings."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks.e3tir import scarce, scarce_arms, scarce_small
from benchmarks.e3tir.arms import changed_experts
from benchmarks.e3tir.scarce_arms import (
    AFTER_SFT,
    ANNEALED,
    ARMS,
    NO_EXPERT,
    PAPER,
    SFT,
    SFT_RL,
    USES_SFT,
    ZERO,
    Cell,
)

from skillweave.tasks.expert_traces import read_traces


def test_a_quick_run_writes_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    scarce.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "e3tir-scarce-quick.json").read_text())
    assert found["command"].startswith("python -m benchmarks.e3tir.scarce --quick")
    assert "<svg" in (tmp_path / "e3tir-scarce-quick.svg").read_text()
    assert [row["arm"] for row in found["rows"]] == [SFT_RL, PAPER]
    for row in found["rows"]:
        assert 0 <= row["score"] <= 1
        assert len(row["curve"]) == row["batches"] == 2
        assert row["expert_tokens"] > 0 < row["sampled_tokens"]


@pytest.mark.parametrize(("hidden", "longest"), [(0.0, 4), (1.0, 4), (0.5, 2)])
def test_a_hidden_call_has_another_number_and_the_usual_result(tmp_path: Path, hidden: float, longest: int) -> None:
    cell = Cell(PAPER, 3, hidden=hidden, least=2, longest=longest)
    traces = read_traces(scarce_arms.experts(scarce_arms.settings(cell), tmp_path, cell))
    assert {scarce_arms.operations(trace) for trace in traces} == set(range(2, longest + 1))
    changed = []
    for trace in traces:
        value, *pairs = re.findall(r"\d+|[-+*]\d+", trace.messages[0]["content"].translate({40: None, 41: None}))
        for pair, call, result in zip(pairs, trace.messages[1:-1:2], trace.messages[2::2], strict=True):
            left, rest = scarce_arms.parts(call["tool_calls"][0]["function"]["arguments"]["expression"])
            assert rest == pair
            changed.append(left != value)
            value = str(eval(value + pair))
            assert result["content"] == value
        assert trace.messages[-1]["content"] == value
    assert sum(changed) / len(changed) == pytest.approx(hidden, abs=0.06)


def test_every_arm_with_rl_plays_the_same_number_of_conversations() -> None:
    for arm in ARMS:
        config = scarce_arms.settings(Cell(arm, 1, batches=7))
        stages = [stage for stage in (config.warm_up, config.rl) if stage.steps]
        played = sum(stage.steps * stage.prompts * stage.size for stage in stages)
        assert played == (0 if arm == "SFT" else 7 * scarce_arms.PROMPTS * scarce_arms.N)
        assert (config.sft is not None) == (arm in USES_SFT)
        assert bool(config.asks_experts) == (arm not in NO_EXPERT)


def test_an_arm_takes_the_settings_with_the_best_score_in_the_grid() -> None:
    tried = [{**asdict(cell), "score": cell.rate} for cell in scarce.tuning_cells()]
    tried.append({**asdict(Cell(PAPER, 11)), "rate": 7.0, "score": 1.0})
    tried.append({**asdict(Cell(SFT_RL, 11, hidden=0.0)), "rate": 8.0, "score": 1.0})
    assert scarce.best(tried) == PAPER
    assert scarce.tuned(Cell(PAPER, 1), tried).rate == scarce.tuned(Cell(PAPER, 1, hidden=0.0), tried).rate == 7.0
    assert scarce.tuned(Cell(SFT_RL, 1, hidden=0.0), tried).rate == 8.0
    assert scarce.tuned(Cell(SFT_RL, 1, hidden=0.5), tried).rate == max(scarce.RATES)
    cells = scarce.cells_of([1, 2], tried)
    assert len(set(cells)) == len(cells)
    assert {cell.arm for cell in cells if cell == Cell(cell.arm, 1, rate=cell.rate, sft=cell.sft)} == set(ARMS)
    assert not {cell.seed for cell in cells} & set(scarce.TUNING_SEEDS)


def test_claims_are_differences_within_a_seed() -> None:
    scores = {PAPER: (0.5, 0.7), SFT_RL: (0.2, 0.1), ZERO: (0.0, 0.04)}
    rows = [{**asdict(Cell(arm, seed)), "score": of[seed]} for arm, of in scores.items() for seed in (0, 1)]
    claims = {claim.claim.split(": ")[1]: claim for claim in scarce.claims(rows, PAPER)}
    assert claims[f"{PAPER} less {SFT_RL}, points"].value == pytest.approx(45)
    assert claims[f"{ZERO}, percent"].value == pytest.approx(2)


# -- SmolLM2 ---------------------------------------------------------------------------------------------------------

PROMPTS = {"2": 2, "3": 5, "4": 3}


def test_every_small_arm_plays_the_same_number_of_conversations_and_sees_short_traces_only(tmp_path: Path) -> None:
    for cell in scarce_small.cells_of(1):
        config = scarce_small.settings(cell)
        stages = [stage for stage in (config.warm_up, config.rl) if stage.steps]
        played = sum(stage.steps * stage.prompts * stage.size for stage in stages)
        assert played == (0 if cell.arm == SFT else scarce_small.BATCHES * scarce_small.PROMPTS * scarce_small.N)
        assert (config.sft.steps if config.sft else 0) == cell.sft_steps
    traces = read_traces(changed_experts(config, tmp_path, scarce_small.shown))
    lengths = [scarce_small.operations(trace.messages[0]["content"]) for trace in traces]
    assert set(lengths) == {scarce_small.SHOWN}
    assert len(lengths) > scarce_small.TRACES


def test_the_small_claims_are_about_the_best_length_of_each_arm() -> None:
    def row(arm: str, sft_steps: int, seed: int, *success: float) -> dict[str, object]:
        by_length = dict(zip(map(str, scarce_small.LENGTHS), success, strict=True))
        return {**asdict(scarce_small.Cell(arm, seed, sft_steps)), "success": by_length, "prompts": PROMPTS}

    rows = [
        *(row(ZERO, 0, seed, 0.1, 0, 0) for seed in (1, 2)),
        *(row(SFT_RL, 10, seed, 0.5, 0.5, 0) for seed in (1, 2)),
        *(row(SFT_RL, 40, seed, 1.0, 0, 0) for seed in (1, 2)),
        *(row(ANNEALED, 0, seed, 0, 0, 0) for seed in (1, 2)),
        *(row(AFTER_SFT, 40, seed, 1.0, 1.0, seed / 10) for seed in (1, 2)),
    ]
    zero, ours = scarce_small.claims(rows)
    assert zero.value == pytest.approx(100 * 0.1 * 2 / 10)
    assert ours.value == pytest.approx(100 * (7 + 3 * 0.15 - 3.5) / 10)
    assert scarce_small.claims(rows[:2]) == [zero]
