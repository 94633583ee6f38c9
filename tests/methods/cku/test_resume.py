"""CKU interrupted, killed, or run by several processes: it ends in the same delta, and does nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.left import record, same_bits, tensors
from helpers.method_driver import drive, note_starts, stop_at
from helpers.unlearning import REFUSAL, as_json, settings
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods.cku import run as run_module
from skillweave.methods.cku.neurons import localise
from skillweave.methods.cku.neurons.localise import read_neurons
from skillweave.methods.cku.run import run
from skillweave.methods.cku.trainer import UnlearnTrainer
from skillweave.methods.training import run as shared
from skillweave.methods.training import trainer


def stop_writing(patch, module, name: str, path: Path, after: bool = False) -> None:
    """Interrupt before (or after) a file is written."""
    write = getattr(module, name)

    def writing(target, *rest):
        if target != path or after:
            write(target, *rest)
        if target == path:
            raise KeyboardInterrupt

    patch.setattr(module, name, writing)


def places(out: Path):
    """Where a run may be interrupted, in order: (what, how to interrupt there)."""

    def training(stage, step):
        return f"{stage}, step {step}", lambda patch: stop_at(patch, stage, step)

    def mark(stage, after=False):
        path = out / stage / "figures.json"
        return f"mark of {stage}", lambda patch: stop_writing(patch, shared, "write_json", path, after)

    def tidying(stage):
        def stop(folder):
            if folder.name == stage:
                raise KeyboardInterrupt
            return dropped(folder)

        dropped = trainer.drop_checkpoints
        return f"tidying of {stage}", lambda patch: patch.setattr(shared, "drop_checkpoints", stop)

    neurons = out / "localise" / "neurons.safetensors"
    return [
        ("neurons", lambda patch: stop_writing(patch, localise, "write_tensors", neurons)),
        ("neurons", lambda patch: stop_writing(patch, localise, "write_tensors", neurons, after=True)),
        mark("localise", after=True),
        ("forget.json", lambda patch: stop_writing(patch, run_module, "write_json", out / "before" / "forget.json")),
        mark("before"),
        training("unlearn", 1),
        training("unlearn", 5),
        ("evaluations", lambda patch: stop_writing(patch, run_module, "write_json", out / "unlearn" / "looks.json")),
        mark("unlearn"),
        mark("unlearn", after=True),
        tidying("unlearn"),
        training("refusal", 2),
        training("refusal", 4),
        training("refusal", 14),
        mark("refusal"),
        tidying("refusal"),
        mark("after"),
        ("figures", lambda patch: stop_writing(patch, shared, "write_json", out / "figures.json")),
        ("figures", lambda patch: stop_writing(patch, shared, "write_json", out / "figures.json", after=True)),
    ]


def test_a_run_cut_off_at_every_place_ends_in_the_same_bits(base, corpus, whole, tmp_path):
    config, began = settings(corpus, refusal=REFUSAL), []
    for what, break_off in places(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            note_starts(patch, began)
            break_off(patch)
            with pytest.raises(KeyboardInterrupt):
                run(base, config, tmp_path)
                pytest.fail(f"never came by: {what}")
        if "step" in what:  # a save that was cut off has no mark: it must not be gone on from
            (tmp_path / what.partition(",")[0] / "checkpoint-99").mkdir(exist_ok=True)
    delta = run(base, config, tmp_path)
    assert same_bits(delta, whole[1])
    assert record(tmp_path) == record(whole[0])
    ours, theirs = (read_neurons(folder / "localise") for folder in (tmp_path, whole[0]))
    assert all(torch.equal(ours[kind][layer], theirs[kind][layer]) for kind in ours for layer in ours[kind])
    # Training went on from its newest whole checkpoint.
    assert began == [
        *(("unlearn", step) for step in (0, 0, 3, 6, 6)),
        *(("refusal", step) for step in (0, 0, 3, 12, 15)),
    ]


def test_what_is_held_against_the_start_is_the_same_after_a_break(base, corpus, tmp_path):
    objective = {"loss": "rmu", "retain": "kl", "sign_agreement": True}
    config = settings(corpus, train="lora", objective=objective, training={"micro_batch_size": 2})
    one = run(base, config, tmp_path / "one")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "unlearn", 5)
        run(base, config, tmp_path / "two")
    assert same_bits(run(base, config, tmp_path / "two"), one)
    assert record(tmp_path / "two") == record(tmp_path / "one")


def test_one_that_goes_back_for_the_budget_does_so_after_a_break_too(base, corpus, tmp_path):
    config = settings(
        corpus,
        objective={"loss": "ga", "retain": "none"},
        training={"steps": 40, "learning_rate": 1e-3},
        watch={"every": 1, "budget": 0.2},
        save_every=5,
    )
    one = run(base, config, tmp_path / "one")
    ended = read_json(tmp_path / "one" / "figures.json")["stages"]["unlearn"]
    assert ended["ended"] == "budget"
    with pytest.MonkeyPatch.context() as patch:  # all is done but for the mark
        stop_writing(patch, shared, "write_json", tmp_path / "two" / "unlearn" / "figures.json")
        with pytest.raises(KeyboardInterrupt):
            run(base, config, tmp_path / "two")
    assert same_bits(run(base, config, tmp_path / "two"), one)
    assert record(tmp_path / "two") == record(tmp_path / "one")


def test_a_finished_run_is_not_run_again(base, corpus, whole, monkeypatch):
    monkeypatch.setattr(run_module, "_Unlearning", None)
    assert same_bits(run(base, settings(corpus, refusal=REFUSAL), whole[0]), whole[1])


# -- processes of their own ------------------------------------------------------------------------------------------


def driver(base: Path, out: Path, config, *more: str, processes: int = 1) -> int:
    return drive("cku", base, out, as_json(config), *more, processes=processes)


@pytest.mark.slow
def test_kill_minus_nine_and_again(taught, corpus, whole, tmp_path):
    config = settings(corpus, refusal=REFUSAL)
    assert driver(taught, tmp_path, config, "unlearn", "5") == -9
    assert (tmp_path / "unlearn" / "checkpoint-3" / "complete").exists()
    assert driver(taught, tmp_path, config, "refusal", "4") == -9
    assert driver(taught, tmp_path, config) == 0
    assert same_bits(Delta.from_pretrained(tmp_path / "delta"), whole[1])
    assert record(tmp_path) == record(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"refusal": {**REFUSAL, "steps": 4}},
    {"refusal": {**REFUSAL, "steps": 4}, "train": "lora"},
    # Not kl, whose gradient is rounding alone at the start: the first mask of signs would be a toss in each process.
    {"objective": {"sign_agreement": True, "retain": "ce"}},
    {"objective": {"sign_agreement": True, "retain": "ce"}, "train": "lora", "training": {"micro_batch_size": 1}},
    {"objective": {"loss": "rmu"}, "localise": {"layers": [0]}},
    {"objective": {"loss": "rmu"}, "localise": {"layers": [0]}, "trainable": "all"},
    {"objective": {"loss": "ga", "retain": "none"}, "watch": {"every": 1, "budget": 0.2},
     "training": {"steps": 40, "learning_rate": 1e-3}},
    {"collapse": {"activations": 4, "gradients": 4}, "robust": {"noise": 0.1, "steps": 4, "batch_size": 4, "every": 2}},
], ids=["full", "lora", "agree", "agree-lora", "rmu", "rmu-all", "budget", "lasting"])  # fmt: skip
def test_two_processes_make_the_same_delta(taught, base, corpus, tmp_path, changes):
    config = settings(corpus, **changes)
    assert driver(taught, tmp_path / "two", config, processes=2) == 0
    one = run(base, config, tmp_path / "one")
    two = Delta.from_pretrained(tmp_path / "two" / "delta")
    assert two.names() == one.names()
    frozen = read_neurons(tmp_path / "one" / "localise")["frozen"]
    found = tensors(two)
    # Adam makes a whole step of a gradient that is nearly zero, whichever way rounding turns it.
    for name, tensor in tensors(one).items():
        assert (found[name] - tensor).norm() < 0.02 * tensor.norm(), name
    for layer, mask in frozen.items():
        for part in ("gate", "up"):
            assert not found[f"model.layers.{layer}.mlp.{part}_proj.weight"][mask].any()
        assert not found[f"model.layers.{layer}.mlp.down_proj.weight"][:, mask].any()
    first, second = (read_json(tmp_path / name / "figures.json")["stages"] for name in ("one", "two"))
    assert second["unlearn"]["ended"] == first["unlearn"]["ended"]
    assert second["unlearn"]["kept_step"] == first["unlearn"]["kept_step"]
    for figure in ("loss_first", "loss_last", *UnlearnTrainer.watched.values()):
        assert second["unlearn"][figure] == pytest.approx(first["unlearn"][figure], rel=1e-2, abs=5e-3), figure
    for figure, value in first["after"].items():
        if figure != "seconds":
            assert second["after"][figure] == pytest.approx(value, rel=2e-2, abs=1e-2), figure
