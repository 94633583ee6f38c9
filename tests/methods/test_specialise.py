"""Specialise end to end on a micro model: it learns, resumes to the same bits, and trains only what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.digits import Digits
from helpers.method_driver import drive, stop_at
from helpers.micro import log_prob
from skillweave.base import Checkpoint, open_base, open_tokenizer
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.config import read_config
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.specialise import SpecialiseConfig, dpo
from skillweave.methods.specialise import run as run_module
from skillweave.methods.specialise.run import run
from skillweave.methods.training import sft, trainer
from skillweave.methods.training.answers import choose_entries, read_samples
from skillweave.methods.training.pieces import read_lines
from skillweave.methods.training.preferences import Pair
from skillweave.tasks import load_task

SETTINGS = {
    "task": "digits.jsonl",
    "bf16": False,
    "warm_start": {"when": "always", "steps": 24, "batch_size": 8, "learning_rate": 3e-3},
    "dpo": {"steps": 20, "batch_size": 8, "learning_rate": 3e-4},
    "probe_prompts": 10,
    "prompts_per_round": 10,
    "samples_per_prompt": 6,
    "sampling_batch_size": 30,
    "max_new_tokens": 5,
    "threshold": 0.9,
    "save_every": 4,
}


def settings(**changes) -> SpecialiseConfig:
    return SpecialiseConfig(**{**SETTINGS, **changes})


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    monkeypatch.setattr(run_module, "load_task", lambda spec: Digits())


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """An unbroken run, its folder and the base's bytes before it."""
    out = tmp_path_factory.mktemp("whole")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_task", lambda spec: Digits())
        delta = run(base, settings(), out)
    return out, delta, before


def tensors(delta: Delta) -> dict[str, torch.Tensor]:
    return {name: delta.tensor(name) for name in delta.names()}


def test_it_learns_and_tells_what_it_did(base, whole):
    out, delta, before = whole
    figures = read_json(out / "figures.json")
    assert figures["solve_rate"]["before"] < 0.1
    assert figures["solve_rate"]["after"] > figures["stages"]["round-1"]["solve_rate"] > 0.1
    stages = figures["stages"]
    assert list(stages) == ["probe-before", "warm-start", "round-1", "probe-after"]
    assert stages["warm-start"]["steps"] == 24
    assert stages["round-1"]["steps"] == 20
    assert stages["warm-start"]["loss_last"] < 0.5 * stages["warm-start"]["loss_first"]
    assert stages["round-1"]["reward_margin"] > 0
    assert stages["round-1"]["pairs"] > 0
    config = read_json(out / "config.json")
    assert config["base"]["fingerprint"] == base.fingerprint
    assert config["config"]["seed"] == 0
    assert set(config["versions"]) >= {"torch", "trl"}
    # The base in memory is untouched, and the delta is what was learnt.
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert any(float(tensor.abs().max()) > 0 for tensor in tensors(delta).values())


def test_the_disk_is_freed(whole):
    out, _, _ = whole
    left = {str(path.relative_to(out)) for path in out.rglob("*.safetensors")}
    assert left
    assert all(name.startswith("delta/") for name in left)
    assert not list(out.rglob("optimizer.pt"))
    assert not list(out.rglob("README.md"))


def test_a_finished_run_is_not_run_again(base, whole, monkeypatch):
    out, delta, _ = whole
    monkeypatch.setattr(run_module, "_all_stages", lambda state: pytest.fail("ran again"))
    again = run(base, settings(), out)
    assert all(torch.equal(again.tensor(name), tensor) for name, tensor in tensors(delta).items())


def test_other_settings_in_the_same_folder_are_refused(base, whole):
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        run(base, settings(seed=1), whole[0])


@pytest.mark.parametrize(("stage", "step"), [("warm-start", 10), ("round-1", 5)])
def test_a_broken_run_ends_in_the_same_bits(base, whole, tmp_path, monkeypatch, stage, step):
    with monkeypatch.context() as patch:
        stop_at(patch, stage, step)
        with pytest.raises(KeyboardInterrupt):
            run(base, settings(), tmp_path)
    # A save that was interrupted has no mark; resuming must not use it.
    torn = tmp_path / stage / "checkpoint-99"
    torn.mkdir()
    began = []
    shown = trainer._Show.on_train_begin

    def on_train_begin(self, args, state, control, **kwargs):
        began.append(state.global_step)
        shown(self, args, state, control, **kwargs)

    monkeypatch.setattr(trainer._Show, "on_train_begin", on_train_begin)
    delta = run(base, settings(), tmp_path)
    assert began[0] == 4 * (step // 4)
    assert all(torch.equal(delta.tensor(name), tensor) for name, tensor in tensors(whole[1]).items())
    for name in ("warm-start", "round-1"):
        kept, unbroken = (read_json(out / name / "figures.json") for out in (tmp_path, whole[0]))
        assert {**kept, "seconds": 0} == {**unbroken, "seconds": 0}
        assert read_json(tmp_path / name / "history.json") == read_json(whole[0] / name / "history.json")


def test_sampling_that_broke_off_goes_on(base, whole, tmp_path, monkeypatch):
    scored = []

    class Breaks(Digits):
        def score(self, answer, entry):
            scored.append(entry.id)
            if len(scored) == 45:
                raise KeyboardInterrupt
            return super().score(answer, entry)

    task = Breaks()
    monkeypatch.setattr(run_module, "load_task", lambda spec: task)
    few = settings(warm_start={**SETTINGS["warm_start"], "steps": 1}, rounds=0)
    with pytest.raises(KeyboardInterrupt):
        run(base, few, tmp_path)
    run(base, few, tmp_path)
    # 30 answers a batch: the first batch was kept, the second made anew, the probe after has 60.
    assert len(scored) == 45 + 30 + 60
    kept = read_samples(tmp_path / "probe-before" / "samples.jsonl")
    assert kept == read_samples(whole[0] / "probe-before" / "samples.jsonl")


@pytest.mark.parametrize(("trainable", "moves"), [("linear", "_proj."), (r"layers\.1\.mlp", "layers.1.mlp")])
def test_what_is_frozen_stays_to_the_bit(base, tmp_path, trainable, moves):
    short = settings(
        trainable=trainable, bf16=True, warm_start={**SETTINGS["warm_start"], "steps": 5, "weight_decay": 0.1}, rounds=0
    )
    delta = run(base, short, tmp_path)
    found = tensors(delta)
    for name in Checkpoint(base.path).names():
        moved = name in found and bool((found[name] != 0).any())
        assert moved == (moves in name), name


def test_a_regex_that_fits_nothing_is_named(base, tmp_path):
    with pytest.raises(UserError, match="trainable 'nope' names no parameter"):
        run(base, settings(trainable="nope"), tmp_path)
    with pytest.raises(UserError, match="regular expression"):
        read_config(SpecialiseConfig, {"task": "x.jsonl", "trainable": "("})


def test_lora_loads_in_peft(base, tmp_path):
    two_rounds = settings(
        train="lora", lora={"rank": 4, "alpha": 8}, rounds=2, dpo={**SETTINGS["dpo"], "steps": 4, "nll_weight": 0}
    )
    delta = run(base, two_rounds, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, str(tmp_path / "delta")).merge_and_unload()
    changed = {name for name, value in merged.named_parameters() if not torch.equal(value, plain[name])}
    assert changed == set(delta.names())
    for name in delta.names():
        torch.testing.assert_close(merged.get_parameter(name) - plain[name], delta.tensor(name), atol=1e-6, rtol=1e-4)
    written = (tmp_path / "delta" / "adapter_config.json").read_text()
    assert json.loads(written)["base_model_name_or_path"] == base.ref
    # The reference of each round is the adapter at the start of the round, not the base.
    stages = read_json(tmp_path / "figures.json")["stages"]
    for name in ("round-1", "round-2"):
        assert stages[name]["loss_first"] == pytest.approx(0.693147, abs=1e-4)


def test_a_task_from_a_file(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_task", load_task)
    rows = [{"prompt": f"say {index}", "answer": str(index) * 3} for index in range(12)]
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": "jsonl", "path": str(tmp_path / "say.jsonl"), "splits": {"calibration": 1, "test": 1}}
    few = settings(task=task, warm_start={**SETTINGS["warm_start"], "steps": 2}, rounds=0)
    run(base, few, tmp_path / "out")
    assert read_json(tmp_path / "out" / "warm-start" / "figures.json")["examples"] == 10
    (tmp_path / "say.jsonl").write_text("".join(json.dumps({**row, "answer": "no"}) + "\n" for row in rows))
    with pytest.raises(UserError, match="other examples"):
        run(base, few, tmp_path / "out")


def test_preferences_raise_the_good_answer_over_the_bad(base, tmp_path):
    """Without a warm start, with gold answers as the chosen ones; measured token by token, not by TRL."""
    unwarmed = {"warm_start": {"when": "never"}, "dpo": {**SETTINGS["dpo"], "nll_weight": 0}, "max_new_tokens": 40}
    delta = run(base, settings(**unwarmed), tmp_path)
    # At first the policy is its own reference, so the loss is ln 2 up to rounding.
    figures = read_json(tmp_path / "round-1" / "figures.json")
    assert figures["loss_first"] == pytest.approx(0.693147, abs=1e-4)
    assert figures["loss_last"] < 0.6
    samples = read_samples(tmp_path / "round-1" / "samples.jsonl")
    assert read_json(tmp_path / "round-1" / "figures.json")["gold_pairs"] > 0
    tokenizer = open_tokenizer(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    row = next(row for row in samples if any(row.ended))
    whole = row.answers[row.ended.index(True)]
    before = [log_prob(model, tokenizer, row.prompt, text) for text in (row.gold, whole)]
    reference = read_lines(tmp_path / "round-1" / "reference.jsonl")
    assert any(chosen == pytest.approx(before[0], abs=1e-3) for chosen, _ in reference)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in delta.names():
                parameter += delta.tensor(name)
    after = [log_prob(model, tokenizer, row.prompt, text) for text in (row.gold, whole)]
    assert after[0] - before[0] > after[1] - before[1] + 0.1


def test_rows_are_the_tokens_that_generation_sees(base):
    tokenizer = open_tokenizer(base.path)
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say 7"}]
    (row,) = sft.encode(tokenizer, [(prompt, "777")], max_length=100)
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "777"}], tokenize=True)
    assert row["input_ids"] == text["input_ids"] == prompt_ids(tokenizer, prompt) + answer_ids(tokenizer, "777")
    assert [id for id in row["labels"] if id != -100] == answer_ids(tokenizer, "777")
    (pair,) = dpo.encode(tokenizer, [Pair("a", prompt, "777", "8", "own")], max_length=100)
    assert pair["prompt_ids"] + pair["chosen_ids"] == row["input_ids"]
    assert pair["rejected_ids"] == answer_ids(tokenizer, "8")
    assert sft.encode(tokenizer, [(prompt, "777")], len(row["input_ids"]) - 1) == []


def test_prompts_of_rounds_go_through_the_split():
    entries = Digits(10).entries
    rounds = [[entry.id for entry in choose_entries(entries, 4, number, 0)] for number in range(3)]
    assert len({name for ids in rounds[:2] for name in ids}) == 8
    assert sorted({name for ids in rounds for name in ids}) == sorted(entry.id for entry in entries)
    with pytest.raises(UserError, match="empty"):
        choose_entries([], 4, 0, 0)
    with pytest.raises(UserError, match="'d1' twice"):
        choose_entries([*entries, entries[1]], 4, 0, 0)


def test_nothing_to_learn_from_is_said(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_task", lambda spec: Digits(gold=False))
    with pytest.raises(UserError, match="no gold answers"):
        run(base, settings(), tmp_path / "a")
    with pytest.raises(UserError, match="nothing was learnt"):
        run(base, settings(warm_start={"when": "never"}), tmp_path / "b")
    monkeypatch.setattr(run_module, "load_task", lambda spec: Digits())
    with pytest.raises(UserError, match="all train prompts are longer than 3 tokens"):
        run(base, settings(max_length=3), tmp_path / "c")


def test_it_is_silent_but_for_our_lines(base, tmp_path, capfd):
    run(base, settings(warm_start={**SETTINGS["warm_start"], "steps": 2}), tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    ours = ("probe-before", "warm-start", "round-1", "probe-after", "reference", "comparing", "writing the delta")
    assert not [line for line in err.splitlines() if line.strip() and not line.strip().startswith(ours)], err


def driver(base: Path, out: Path, *more: str, processes: int = 1, **changes) -> int:
    return drive("specialise", base, out, {**SETTINGS, **changes}, *more, processes=processes)


@pytest.mark.slow
def test_kill_minus_nine_and_again(micro_base, whole, tmp_path):
    assert driver(micro_base, tmp_path, "round-1", "5") == -9
    assert (tmp_path / "round-1" / "checkpoint-4" / "complete").exists()
    assert driver(micro_base, tmp_path) == 0
    delta = Delta.from_pretrained(tmp_path / "delta")
    assert all(torch.equal(delta.tensor(name), tensor) for name, tensor in tensors(whole[1]).items())


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_two_processes_make_the_same_delta(micro_base, base, tmp_path, train):
    looks = {"evaluate_every": 4, "patience": 3}
    same = {"train": train, "warm_start": {**SETTINGS["warm_start"], "micro_batch_size": 2, **looks}}
    assert driver(micro_base, tmp_path / "two", processes=2, **same) == 0
    one = run(base, settings(**same), tmp_path / "one")
    two = Delta.from_pretrained(tmp_path / "two" / "delta")
    for name, tensor in tensors(one).items():
        torch.testing.assert_close(two.tensor(name), tensor, atol=2e-4, rtol=1e-2)
    first, second = (read_json(tmp_path / name / "figures.json")["stages"] for name in ("one", "two"))
    assert second["round-1"]["pairs"] == first["round-1"]["pairs"]
    for key in ("steps", "best_step", "held_out_loss"):
        assert second["warm-start"][key] == pytest.approx(first["warm-start"][key], rel=1e-3)
    assert second["warm-start"]["loss_last"] == pytest.approx(first["warm-start"]["loss_last"], rel=1e-3)
