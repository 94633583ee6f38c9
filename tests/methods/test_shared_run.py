"""What a method's run shares with all others: whose folder it is, what fits, and the policy between its stages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import model_validator
from transformers import AutoModelForCausalLM

from helpers.digits import Digits, Repeats
from skillweave.base import open_base
from skillweave.config import Config
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.training.policy import Policy
from skillweave.methods.training.run import Run
from skillweave.methods.training.settings import ModelSettings


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


def begin(base, folder: Path, task=None, **settings) -> Run:
    return Run.begin("a-method", base, ModelSettings(**settings), task or Digits(), folder)


def test_a_folder_with_nothing_done_may_be_begun_otherwise(base, tmp_path):
    begin(base, tmp_path, max_length=3)
    again = begin(base, tmp_path, max_length=30)
    assert read_json(tmp_path / "config.json")["config"]["max_length"] == 30
    again.stage("one", lambda folder: {"steps": 0})
    with pytest.raises(UserError, match=r"other settings \(max_length\)"):
        begin(base, tmp_path, max_length=40)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("one/figures.json", '{"steps": 0'),
        ("one/figures.json", "[]"),
        ("one/figures.json", "{}"),
        ("config.json", "[]"),
        ("config.json", {"base": None}),
        ("config.json", {"base": {}}),
        ("config.json", {"config": []}),
    ],
)
def test_a_damaged_file_of_a_run_is_told_with_what_to_do(base, tmp_path, file, text):
    def resume() -> None:
        begin(base, tmp_path).stage("one", lambda folder: {"steps": 0})

    resume()
    if isinstance(text, dict):
        text = json.dumps({**read_json(tmp_path / file), **text})
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file}.*[Dd]elete {tmp_path} to start"):
        resume()


def test_settings_are_compared_as_todays_class_reads_them(base, tmp_path):
    """A setting that moved is found in its old place, a new one has its default, and one nobody knows is refused."""

    class Place(Config):
        text: str = "default"
        added_since: int = 3

    class Moved(ModelSettings):
        place: Place = Place()

        @model_validator(mode="before")
        @classmethod
        def _old_place(cls, values):
            if "text" in values:
                values = {**values, "place": {"text": values["text"]}}
                del values["text"]
            return values

    def resume(**settings) -> Run:
        return Run.begin("a-method", base, Moved(bf16=False, **settings), Digits(), tmp_path)

    def rewrite(change) -> None:
        stored = read_json(tmp_path / "config.json")
        change(stored["config"])
        (tmp_path / "config.json").write_text(json.dumps(stored))

    resume(place={"text": "x"}).stage("one", lambda folder: {"steps": 0})
    rewrite(lambda config: config.update(text=config.pop("place")["text"]))
    with pytest.raises(UserError, match=r"other settings \(place\)"):
        resume(place={"text": "y"})
    resume(place={"text": "x"})
    assert read_json(tmp_path / "config.json")["config"]["place"] == {"text": "x", "added_since": 3}
    rewrite(lambda config: config.pop("bf16"))
    resume(place={"text": "x"})
    rewrite(lambda config: config.update(nobody=1))
    with pytest.raises(UserError, match=r"settings this version cannot read \(nobody: .*\): choose another folder"):
        resume(place={"text": "x"})


def test_a_run_of_another_method_is_refused_by_its_name(base, tmp_path):
    begin(base, tmp_path).stage("one", lambda folder: {"steps": 0})
    with pytest.raises(UserError, match=r"other settings \(the method a-method\)"):
        Run.begin("another", base, ModelSettings(), Digits(), tmp_path)


def test_a_stage_is_done_once(base, tmp_path):
    def work(folder):
        done.append(folder.name)
        return {"steps": len(done), "loss": 0.5}

    done: list[str] = []
    assert begin(base, tmp_path).stage("one", work)["steps"] == 1
    assert begin(base, tmp_path).stage("one", work)["steps"] == 1
    assert done == ["one"]


def test_what_does_not_fit_is_left_out_and_nothing_left_is_an_error(base, tmp_path, capsys):
    task = Repeats(40, 8)
    run = begin(base, tmp_path, task, max_length=19)
    lengths = {entry.id: len(f"{entry.prompt}") + 3 for entry in task.splits["train"]}  # <user>, <end>, <assistant>
    assert [entry.id for entry in run.short_enough("train")] == [id for id, n in lengths.items() if n < 19]
    answered = run.short_enough("train", answered=True)
    assert [entry.id for entry in answered] == [
        entry.id for entry in task.splits["train"] if lengths[entry.id] + len(entry.answer) + 1 <= 19
    ]
    assert 0 < len(answered) < 20
    left = len(task.splits["train"]) - len(answered)
    said = capsys.readouterr().err
    assert f"{left} of {len(task.splits['train'])} train prompts with their answers" in said
    assert "are longer than 19 tokens (max_length) and are left out; raise it or shorten them" in said
    with pytest.raises(UserError, match="all calibration prompts are longer than 4 tokens"):
        begin(base, tmp_path, task, max_length=4).short_enough("calibration")


def test_the_sampled_model_is_the_trained_one_rounded_once(base, tmp_path):
    """On a float32 base: adding a small delta to weights that were rounded before would lose most of it."""
    generator = torch.Generator().manual_seed(0)
    change = {
        name: 1e-5 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in base.model.named_parameters()
    }
    Delta(change, base_fingerprint=base.fingerprint).save_pretrained(tmp_path / "delta")
    policy = Policy(base.path, base.ref, torch.device("cpu"), tmp_path / "delta")
    trained = dict(policy.open_to_train(ModelSettings(), seed=0).named_parameters())
    plain = dict(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.bfloat16).named_parameters())
    sampled = dict(policy.open_to_sample(SimpleNamespace(autocast=True, train="full")).named_parameters())
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter, base.model.get_parameter(name) + change[name])
        assert torch.equal(sampled[name], parameter.bfloat16())
    assert any(not torch.equal(sampled[name], plain[name]) for name in trained)
