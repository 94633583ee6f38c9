"""The log of a training beside our own files: TensorBoard for every method, one curve however often it was killed."""

from __future__ import annotations

import json
import sys

import pytest

from helpers.digits import Digits
from helpers.method_driver import stop_at
from skillweave.base import open_base
from skillweave.config import read_config
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods import METHODS, get_method
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import ModelSettings

WARM = {"when": "always", "steps": 7, "batch_size": 4, "evaluate_every": 3}


def settings(**changes) -> SpecialiseConfig:
    sizes = {"probe_prompts": 1, "samples_per_prompt": 2, "max_new_tokens": 2, "save_every": 3, "rounds": 0}
    return SpecialiseConfig(task="digits.jsonl", bf16=False, warm_start=WARM, **{**sizes, **changes})


@pytest.fixture(autouse=True)
def task(monkeypatch):
    task = Digits()
    task.splits["calibration"] = task.entries[:4]
    monkeypatch.setattr(sys.modules["skillweave.methods.specialise.run"], "load_task", lambda spec: task)


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


@pytest.mark.parametrize("killed_at", [None, 1, 5])
def test_tensorboard_has_one_curve_of_every_step(base, tmp_path, monkeypatch, killed_at):
    """Killed before the first checkpoint, and after one: the steps that are done again stand there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if killed_at is not None:
        with monkeypatch.context() as patch:
            stop_at(patch, "warm-start", killed_at + 1)  # the log of a step comes after its end
            with pytest.raises(KeyboardInterrupt):
                run(base, settings(report_to="tensorboard"), tmp_path)
    run(base, settings(report_to="tensorboard"), tmp_path)
    log = read_json(tmp_path / "warm-start" / "history.json")
    read = EventAccumulator(str(tmp_path / "warm-start" / "tensorboard")).Reload()
    told = read.Scalars("train/loss")
    assert [scalar.step for scalar in told] == [1, 2, 3, 4, 5, 6, 7]
    assert [scalar.value for scalar in told] == pytest.approx([entry["loss"] for entry in log])
    looks = read.Scalars("eval/loss")
    assert [scalar.step for scalar in looks] == [3, 6, 7]
    assert [s.value for s in looks] == pytest.approx([e["held_out_loss"] for e in log if "held_out_loss" in e])


def test_without_a_service_only_our_own_files_are_written(base, tmp_path):
    run(base, settings(), tmp_path)
    assert not list(tmp_path.rglob("*events*"))
    assert not list(tmp_path.rglob("tensorboard"))


@pytest.mark.parametrize(
    ("written", "read"),
    [("none", []), (None, []), ("tensorboard", ["tensorboard"]), (["tensorboard", "wandb"], ["tensorboard", "wandb"])],
)
def test_every_method_has_the_setting(written, read):
    values = {"task": "builtin:steps", "forget": "f.jsonl", "retain": "r.jsonl"}
    for name in ("specialise", "tpaw", "e3tir", "cku"):
        config = get_method(name).config
        needed = {key: value for key, value in values.items() if key in config.model_fields}
        assert read_config(config, {**needed, "report_to": written}).report_to == read
        assert "report_to" in config.may_change
    assert {"specialise", "tpaw", "e3tir", "cku"} <= set(METHODS)


def test_the_older_name_of_the_setting_is_still_read():
    assert E3tirConfig(task="builtin:steps", tensorboard=True).report_to == ["tensorboard"]
    assert E3tirConfig(task="builtin:steps", tensorboard=False).report_to == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("tensorbord", "unknown service 'tensorbord'; did you mean 'tensorboard'"),
        (["tensorboard", "comet_ml"], "the package for comet_ml is missing: pip install comet-ml"),
    ],
)
def test_a_service_that_cannot_be_had_is_told_before_any_work(base, tmp_path, names, said):
    with pytest.raises(UserError, match=said):
        run(base, settings(report_to=names), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_may_be_set_otherwise_at_any_time(base, tmp_path):
    done = run(base, settings(), tmp_path)
    again = run(base, settings(report_to="tensorboard"), tmp_path)
    assert again.names() == done.names()


def test_a_run_of_before_there_was_a_setting_goes_on(base, tmp_path):
    """What is missing in its config.json has its default, whether at the top or within a stage's settings."""
    config = settings(save_every=4)
    Run.begin("specialise", base, config, Digits(), tmp_path).stage("one", lambda folder: {"steps": 0})
    written = read_json(tmp_path / "config.json")
    for key in ("report_to", "seed"):
        del written["config"][key]
    for key in ("held_out", "patience"):
        del written["config"]["warm_start"][key]
    (tmp_path / "config.json").write_text(json.dumps(written))
    Run.begin("specialise", base, config, Digits(), tmp_path)
    other = config.model_copy(update={"warm_start": config.warm_start.model_copy(update={"patience": 3})})
    with pytest.raises(UserError, match=r"other settings \(warm_start\)"):
        Run.begin("specialise", base, other, Digits(), tmp_path)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        Run.begin("specialise", base, config.model_copy(update={"seed": 1}), Digits(), tmp_path)


def test_tokens_of_the_environment_are_in_no_log(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secretsecret")
    run(base, settings(report_to="tensorboard"), tmp_path)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"secretsecret" in content for content in written)
    assert ModelSettings().report_to == []
