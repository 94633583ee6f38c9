"""Where a run of TPAW begins: at a full delta or an adapter of an earlier run; and play on adapters."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.digits import Repeats
from helpers.left import same_bits
from helpers.method_driver import stop_at
from helpers.micro import log_prob, save_micro
from helpers.selfplay import LN2, SETTINGS, SFT, SHORT, model_with, settings, stop_calling
from skillweave.base import open_base, open_tokenizer
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.tpaw import run as run_module
from skillweave.methods.tpaw.run import run
from skillweave.methods.tpaw.team import Team


def test_a_start_is_player_0_and_part_of_the_delta(base, whole, tmp_path):
    delta = run(base, settings(**SHORT, start=whole.out / "delta"), tmp_path)
    kept, stages = whole.figures()["kept_round"], read_json(tmp_path / "figures.json")["stages"]
    assert list(stages) == ["start", "held-out-0", "round-1", "held-out-1"]
    # It is the player that was kept there, so its figures are the same.
    of_kept = {**whole.figures(f"held-out-{kept}"), **stages["held-out-0"]}
    assert {key: of_kept[key] for key in stages["held-out-0"]} == stages["held-out-0"]
    assert stages["held-out-0"]["log_prob"] == whole.judged()[kept]
    assert stages["round-1"]["loss_first"] == LN2
    model, tokenizer = model_with(base, delta), open_tokenizer(base.path)
    entries = whole.task.splits["calibration"][:10]
    assert stages["held-out-1"]["log_prob"] == pytest.approx(
        fmean(log_prob(model, tokenizer, entry.prompt, entry.answer) for entry in entries), abs=1e-4
    )
    assert whole.out.joinpath("delta").is_dir()


def test_supervised_training_goes_on_from_a_start_and_leaves_no_copy_of_it(base, whole, few, tmp_path):
    config = settings(**{**SHORT, "sft": {**SFT, "steps": 2, "learning_rate": 1e-4}, "start": whole.out / "delta"})
    unbroken = run(base, config, tmp_path / "a")
    # Not from the base, whose loss is above 4.
    assert read_json(tmp_path / "a" / "figures.json")["stages"]["start"]["loss_first"] < 2.5
    assert {path.relative_to(tmp_path / "a").parts[0] for path in tmp_path.rglob("a/**/*.safetensors")} == {"delta"}
    for break_off in (lambda patch: stop_at(patch, "start", 1), lambda patch: stop_calling(patch, Team, "join")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_off(patch)
            run(base, config, tmp_path / "b")
    assert same_bits(run(base, config, tmp_path / "b"), unbroken)


def test_a_start_that_does_not_fit_is_refused(base, whole, tmp_path):
    start = {**SHORT, "start": whole.out / "delta"}
    with pytest.raises(UserError, match="is a full delta, and train is lora"):
        run(base, settings(**start, train="lora"), tmp_path / "a")
    other = open_base(save_micro(tmp_path / "other", seed=2), device="cpu")
    with pytest.raises(UserError, match="the delta belongs on"):
        run(other, settings(**start), tmp_path / "b")
    with pytest.raises(UserError, match="nowhere"):
        run(base, settings(**{**SHORT, "start": tmp_path / "nowhere"}), tmp_path / "c")


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """Two rounds of SPIN on adapters."""
    out = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_task", lambda spec: Repeats())
        adapter = {"train": "lora", "lora": {"rank": 4, "alpha": 8}, "sft": {**SFT, "learning_rate": 1e-2}}
        play = {"loss": "spin", "team": None, "rounds": 2, "keep": "last"}
        run(base, settings(**adapter, **play, training={**SETTINGS["training"], "steps": 3}), out)
    return out


def test_lora_loads_in_peft(base, lora):
    delta = Delta.from_pretrained(lora / "delta")
    assert delta.kind == "lora"
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, str(lora / "delta")).merge_and_unload()
    changed = {name for name, value in merged.named_parameters() if not torch.equal(value, plain[name])}
    assert changed == set(delta.names())
    for name in delta.names():
        torch.testing.assert_close(merged.get_parameter(name) - plain[name], delta.tensor(name), atol=1e-6, rtol=1e-4)
    assert read_json(lora / "delta" / "adapter_config.json")["base_model_name_or_path"] == base.ref
    # The player of each round is the adapter at the start of the round, not the base.
    stages = read_json(lora / "figures.json")["stages"]
    for name in ("round-1", "round-2"):
        assert stages[name]["loss_first"] == LN2
    tokenizer, entries = open_tokenizer(base.path), Repeats().splits["calibration"][:10]
    with_adapter = model_with(base, delta)
    assert stages["held-out-2"]["log_prob"] == pytest.approx(
        fmean(log_prob(with_adapter, tokenizer, entry.prompt, entry.answer) for entry in entries), abs=1e-4
    )
    assert {path.relative_to(lora).parts[0] for path in lora.rglob("*.safetensors")} == {"delta"}


def test_an_adapter_goes_on_as_an_adapter_or_as_a_full_model(base, lora, few, tmp_path):
    kept = model_with(base, Delta.from_pretrained(lora / "delta"))
    tokenizer, entries = open_tokenizer(base.path), few.splits["calibration"]
    expected = fmean(log_prob(kept, tokenizer, entry.prompt, entry.answer) for entry in entries)
    adapter = {"train": "lora", "lora": {"rank": 4, "alpha": 8}}
    for name, changes in (("lora", adapter), ("full", {})):
        delta = run(base, settings(**{**SHORT, **changes}, start=lora / "delta"), tmp_path / name)
        assert delta.kind == name
        begun = read_json(tmp_path / name / "figures.json")["stages"]["held-out-0"]
        assert begun["log_prob"] == pytest.approx(expected, abs=1e-4)
