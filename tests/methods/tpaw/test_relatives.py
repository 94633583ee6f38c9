"""TPAW's relatives end to end: SPIN, DPO, T-SPIN and supervised training alone."""

from __future__ import annotations

from statistics import fmean

import pytest

from helpers.left import record, same_bits
from helpers.selfplay import LN2, SFT, SHORT, settings
from skillweave.base import open_tokenizer
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.files.read import read_json
from skillweave.methods.tpaw.run import run
from skillweave.methods.training.answers import read_samples
from skillweave.methods.training.run import Run


def test_a_team_of_one_with_equal_weights_is_spin_to_the_bit(base, whole, few, tmp_path):
    same = {**SHORT, "rounds": 2, "start": whole.out / "delta", "lam": 5.0, "generations": 2}
    spin = run(base, settings(**{**same, "loss": "spin"}), tmp_path / "spin")
    team = run(base, settings(**{**same, "loss": "team", "team": 1, "eta": 1.0, "gamma": 3.0}), tmp_path / "team")
    assert same_bits(spin, team)
    assert not same_bits(spin, whole.delta)
    stages = read_json(tmp_path / "spin" / "figures.json")["stages"]
    for number in (1, 2):
        # At the start of each round the policy equals its player, so the loss is ln 2 for any lam.
        assert stages[f"round-{number}"]["loss_first"] == LN2
    assert stages["round-2"]["pairs"] > stages["round-2"]["kept"]
    samples = [record(tmp_path / name)["round-2/samples.jsonl"] for name in ("spin", "team")]
    assert samples[0] == samples[1]


def test_dpo_learns_from_the_verifier(base, whole, tmp_path):
    changes = {**SHORT, "loss": "dpo", "samples_per_prompt": 3, "start": whole.out / "delta"}
    run(base, settings(**changes), tmp_path)
    told = read_json(tmp_path / "round-1" / "figures.json")
    assert told["loss_first"] == LN2
    right = {
        row.id: {text for text, score in zip(row.answers, row.scores, strict=True) if score >= 0.5}
        for row in read_samples(tmp_path / "round-1" / "samples.jsonl")
    }
    assert told["pairs"] == told["kept"] > 0
    assert told["generated_score"] == pytest.approx(
        fmean(score for row in read_samples(tmp_path / "round-1" / "samples.jsonl") for score in row.scores)
    )
    assert len(right) == 32


def test_tspin_holds_each_answer_against_that_of_the_first_round(base, whole, few, tmp_path, monkeypatch):
    given, train = {}, Run.train

    def trained(self, folder, how, rows, *rest):
        given[folder.name] = rows
        return train(self, folder, how, rows, *rest)

    monkeypatch.setattr(Run, "train", trained)
    run(base, settings(**{**SHORT, "rounds": 2, "loss": "tspin", "start": whole.out / "delta"}), tmp_path)
    tokenizer = open_tokenizer(base.path)
    first = {
        tuple(prompt_ids(tokenizer, row.prompt)): answer_ids(tokenizer, row.answers[0])
        for row in read_samples(tmp_path / "round-1" / "samples.jsonl")
        if row.ended[0] and row.answers[0].strip() not in ("", row.gold)
    }
    assert all(row.answers[2] == row.answers[1] for row in given["round-1"])
    # A first answer that equals the target, or is faulty, is replaced by the generation, which teaches nothing.
    expected = [first.get(tuple(row.prompt), row.answers[1]) for row in given["round-2"]]
    assert [row.answers[2] for row in given["round-2"]] == expected
    assert any(row.answers[2] != row.answers[1] for row in given["round-2"])
    assert all(row.answers[2] != row.answers[0] for row in given["round-2"])


def test_sft_alone_draws_no_answers(base, tmp_path):
    changes = {**SHORT, "rounds": 2, "loss": "sft", "training": {**SFT, "steps": 4}}
    run(base, settings(**changes), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert figures["held_out_log_prob"][2] > figures["held_out_log_prob"][0] + 1
    assert figures["stages"]["round-2"]["loss_last"] < figures["stages"]["round-1"]["loss_first"]
    assert not (tmp_path / "round-1" / "samples.jsonl").exists()
