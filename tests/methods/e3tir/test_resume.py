"""E3-TIR interrupted, killed, or over several processes: it ends with the same delta and plays nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.agents import SFT, merged, note_groups, settings
from helpers.left import record, same_bits, tensors
from helpers.method_driver import drive, note_starts, stop_at
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods.e3tir import watch
from skillweave.methods.e3tir.run import run
from skillweave.methods.training import run as shared
from skillweave.methods.training import trainer


def stop_writing(patch, module, path: Path, *, entries: int = 0) -> None:
    """Interrupt the run before it writes a file with at least so many entries."""
    write = module.write_json

    def writing(target, value):
        if target == path and len(value) >= entries:
            raise KeyboardInterrupt
        write(target, value)

    patch.setattr(module, "write_json", writing)


def places(out: Path):
    """The places where a run may be interrupted, in their order: (name, how to interrupt it there)."""

    def training(stage, step):
        return f"{stage}, step {step}", lambda patch: stop_at(patch, stage, step)

    def mark(stage):
        return f"mark of {stage}", lambda patch: stop_writing(patch, shared, out / stage / "figures.json")

    def look(stage, number):
        path = out / stage / "curve.json"
        return f"look {number} in {stage}", lambda patch: stop_writing(patch, watch, path, entries=number)

    def tidying(stage):
        dropped = trainer.drop_checkpoints

        def stop(folder):
            if folder.name == stage:
                raise KeyboardInterrupt
            return dropped(folder)

        return f"tidying of {stage}", lambda patch: patch.setattr(shared, "drop_checkpoints", stop)

    return [
        training("sft", 1), look("warm-up", 1), training("warm-up", 1), look("warm-up", 2), training("warm-up", 3),
        mark("warm-up"), tidying("warm-up"), training("rl", 3), mark("rl"), mark(""),
    ]  # fmt: skip


def noted(began: list[tuple[str, int]], base, config, folder: Path):
    """A run that records the step at which each of its trainings started or resumed."""
    with pytest.MonkeyPatch.context() as patch:
        note_starts(patch, began)
        return run(base, config, folder)


def trees(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("trees/*.txt")}


def test_a_run_cut_off_at_every_place_ends_in_the_same_bits(base, whole, tmp_path):
    began: list[tuple[str, int]] = []
    for what, break_off in places(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            note_starts(patch, began)
            break_off(patch)
            with pytest.raises(KeyboardInterrupt):
                run(base, settings(sft=SFT), tmp_path)
                pytest.fail(f"never came by: {what}")
        if "step" in what:  # a save that was cut off has no mark: it must not be gone on from
            (tmp_path / what.partition(",")[0] / "checkpoint-99").mkdir(exist_ok=True)
    played: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        note_groups(patch, played)
        delta = run(base, settings(sft=SFT), tmp_path)
    assert same_bits(delta, whole.delta)
    assert record(tmp_path) == record(whole.out)  # the loss of every step, every look, all figures
    assert trees(tmp_path) == trees(whole.out)
    assert played == []  # only the figures were missing
    # Training went on from its newest whole checkpoint.
    assert began == [
        *(("sft", step) for step in (0, 0)),
        *(("warm-up", step) for step in (0, 0, 0, 2, 3)),
        *(("rl", step) for step in (0, 2, 3)),
    ]


def test_a_run_of_several_updates_a_batch_goes_on_between_batches(base, tmp_path):
    several = {"updates": 2, "steps": 2, "micro_batch_size": 2}
    config = settings(warm_up=several, rl=several, save_every=1, evaluate_every=1, evaluate_on=1, show_every=1)
    one, other, began = tmp_path / "one", tmp_path / "other", []
    whole = run(base, config, one)
    assert [len(read_json(one / stage / "history.json")) for stage in ("warm-up", "rl")] == [4, 4]
    assert [look["step"] for look in read_json(one / "rl" / "curve.json")] == [0, 2, 4]
    for stage, step in (("warm-up", 3), ("rl", 3)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, stage, step)
            noted(began, base, config, other)
    assert same_bits(noted(began, base, config, other), whole)
    assert record(other) == record(one)
    assert trees(other) == trees(one)
    # Two steps share what was played: a run goes on with a batch of its own, never in the middle of one.
    assert began == [("warm-up", 0), ("warm-up", 2), ("rl", 0), ("rl", 2)]


@pytest.mark.parametrize("updates", [1, 2])
def test_a_run_cut_off_after_its_budget_is_spent_goes_no_further(base, tmp_path, updates):
    stage = {"steps": 20, "budget": 700, "updates": updates}
    config = settings(warm_up=stage, rl={"steps": 0}, save_every=1, evaluate_on=0)
    one, other, began = tmp_path / "one", tmp_path / "other", []
    whole = run(base, config, one)
    steps = len(read_json(one / "warm-up" / "history.json"))
    assert updates < steps < 20 * updates
    places = (
        lambda patch: stop_at(patch, "warm-up", steps),  # its log and what would save it come after
        lambda patch: stop_writing(patch, watch, other / "warm-up" / "curve.json"),
        lambda patch: stop_writing(patch, shared, other / "warm-up" / "figures.json"),
    )
    for break_off in places:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            break_off(patch)
            noted(began, base, config, other)
    assert same_bits(noted(began, base, config, other), whole)
    assert record(other) == record(one)
    assert began == [("warm-up", 0), *[("warm-up", steps - updates)] * 3]


# -- processes of their own ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_minus_nine_and_again(taught, whole, tmp_path):
    given = merged(sft=SFT)
    assert drive("e3tir", taught, tmp_path, given, "warm-up", "3") == -9
    assert (tmp_path / "warm-up" / "checkpoint-2" / "complete").exists()
    assert drive("e3tir", taught, tmp_path, given, "rl", "1") == -9
    assert drive("e3tir", taught, tmp_path, given) == 0
    assert same_bits(Delta.from_pretrained(tmp_path / "delta"), whole.delta)
    assert record(tmp_path) == record(whole.out)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"train": "lora", "expert": {"branch": "whole"}},
                                     {"warm_up": {"micro_batch_size": 2}}], ids=["full", "lora", "pieces"])  # fmt: skip
def test_two_processes_make_the_same_delta(taught, base, tmp_path, changes):
    at_once = {"steps": 2, "micro_batch_size": None}
    changes = {"save_every": 2, "warm_up": at_once, "rl": at_once, **changes}
    assert drive("e3tir", taught, tmp_path / "two", merged(**changes), processes=2) == 0
    one = run(base, settings(**changes), tmp_path / "one")
    two = Delta.from_pretrained(tmp_path / "two" / "delta")
    first, second = ({stage: read_json(tmp_path / name / stage / "history.json") for stage in ("warm-up", "rl")}
                     for name in ("one", "two"))  # fmt: skip
    # The first batch is the very same: each process played whole groups, and the statistics are over all of them.
    ours, theirs = first["warm-up"][0], second["warm-up"][0]
    assert set(ours) == set(theirs)
    in_pieces = changes["warm_up"]["micro_batch_size"] is not None  # of which TRL logs the mean of the means
    for key in set(ours) - {"step_time", "num_tokens", "tools/seconds"}:
        if in_pieces and key.startswith(("entropy", "clip_ratio")):
            continue
        assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-4), key
    # Adam makes a whole step of a gradient that is nearly zero, whichever way rounding turns it.
    assert two.names() == one.names()
    found = tensors(two)
    for name, tensor in tensors(one).items():
        assert (found[name] - tensor).norm() < 0.02 * tensor.norm(), name
    for stage in ("warm-up", "rl"):
        figures = [read_json(tmp_path / name / "figures.json")["stages"][stage] for name in ("one", "two")]
        assert figures[0]["sampled_tokens"] == figures[1]["sampled_tokens"]
        assert figures[1]["success"] == pytest.approx(figures[0]["success"])
    assert trees(tmp_path / "two").keys() == trees(tmp_path / "one").keys()
