"""TPAW cut off, killed, or over several processes: it ends in the same delta, and does nothing twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.digits import Repeats
from helpers.left import record, same_bits, tensors
from helpers.method_driver import drive, note_starts, stop_at
from helpers.selfplay import SETTINGS, settings, stop_calling, stop_writing
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.tpaw import run as run_module
from skillweave.methods.tpaw.run import run
from skillweave.methods.tpaw.team import Team
from skillweave.methods.tpaw.trainer import TeamTrainer
from skillweave.methods.training import pieces


def places(out: Path):
    """Where a run may be cut off, in the order in which it comes by: (what, how to break off there)."""

    def training(stage, step):
        return f"{stage}, step {step}", lambda patch: stop_at(patch, stage, step)

    def writing(file, after=False):
        return f"{'after' if after else 'before'} {file}", lambda patch: stop_writing(patch, out, file, after)

    def joining(number):
        return f"join {number}", lambda patch: stop_calling(patch, Team, "join", lambda _, who: who == number)

    def tidying(stage):
        return f"tidy {stage}", lambda patch: stop_calling(
            patch, run_module, "drop_checkpoints", lambda folder: folder.name == stage
        )

    return [
        training("start", 5),
        joining(0),
        tidying("start"),
        writing("held-out-0/greedy.jsonl"),
        writing("round-1/samples.parts/000001.jsonl"),
        writing("scores/player-0/round-1-targets.parts/000001.jsonl"),
        training("round-1", 4),
        joining(1),
        tidying("round-1"),
        writing("round-1/figures.json"),
        writing("round-1/figures.json", after=True),
        writing("held-out-1/drawn.parts/000000.jsonl"),
        writing("scores/player-1/held-out-greedy-0.parts/000000.jsonl"),
        writing("round-2/samples.jsonl"),
        writing("scores/player-1/round-2-generated.parts/000000.jsonl"),
        training("round-2", 5),
        writing("held-out-2/figures.json"),
        writing("held-out-2/figures.json", after=True),
        writing("round-3/samples.parts/000000.jsonl"),
        writing("scores/player-2/round-2-targets.parts/000000.jsonl"),
        training("round-3", 2),
        tidying("round-3"),
        writing("held-out-3/figures.json"),
        writing("figures.json"),
        writing("figures.json", after=True),
    ]


def test_a_run_cut_off_at_every_place_ends_in_the_same_bits(base, whole, tmp_path):
    pieces_done, began = Counter(), []
    for what, break_off in places(tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            write = pieces.write_json_lines
            note_starts(patch, began)

            def counting(path, text, write=write):
                write(path, text)
                pieces_done[path] += 1

            patch.setattr(pieces, "write_json_lines", counting)
            break_off(patch)
            with pytest.raises(KeyboardInterrupt):
                run(base, settings(), tmp_path)
                pytest.fail(f"never came by: {what}")
        if "step" in what:  # a save that was cut off has no mark: it must not be gone on from
            (tmp_path / what.partition(",")[0] / "checkpoint-99").mkdir()
    delta = run(base, settings(), tmp_path)
    assert same_bits(delta, whole.delta)
    assert record(tmp_path) == record(whole.out)
    assert not (tmp_path / "players").exists()
    # Nothing that was written down was made again, and training went on from its newest whole checkpoint: after it
    # was cut off in the middle, and then, with no step to do, for as long as its result had not been put away.
    assert set(pieces_done.values()) == {1}
    assert began == [
        *(("start", step) for step in (0, 3, 16, 16)),
        *(("round-1", step) for step in (0, 3, 5, 5, 0)),
        *(("round-2", step) for step in (0, 3)),
        *(("round-3", step) for step in (0, 0, 5)),
    ]


def test_a_finished_run_is_not_run_again(base, whole, monkeypatch):
    monkeypatch.setattr(run_module, "_SelfPlay", None)
    assert same_bits(run(base, settings(), whole.out), whole.delta)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": 1}, "seed"), ({"lam": 0.2, "eta": 2.0}, "lam, eta"), ({"generations": None}, "generations"),
     ({"training": {**SETTINGS["training"], "steps": 6}}, "training")],
)  # fmt: skip
def test_other_settings_in_the_same_folder_are_refused(base, whole, changes, said):
    with pytest.raises(UserError, match=rf"other settings \({said}\)"):
        run(base, settings(**changes), whole.out)


def test_other_examples_in_the_same_folder_are_refused(base, whole, monkeypatch):
    monkeypatch.setattr(run_module, "load_task", lambda spec: Repeats(30))
    with pytest.raises(UserError, match="other examples"):
        run(base, settings(), whole.out)


# -- processes of their own ------------------------------------------------------------------------------------------


def driver(base: Path, out: Path, *more: str, processes: int = 1, **changes) -> int:
    return drive("tpaw", base, out, {**SETTINGS, **changes}, *more, processes=processes)


@pytest.mark.slow
def test_kill_minus_nine_and_again(micro_base, whole, tmp_path):
    assert driver(micro_base, tmp_path, "round-2", "4") == -9
    assert (tmp_path / "round-2" / "checkpoint-3" / "complete").exists()
    assert driver(micro_base, tmp_path, "round-3", "1") == -9
    assert driver(micro_base, tmp_path) == 0
    assert same_bits(Delta.from_pretrained(tmp_path / "delta"), whole.delta)
    assert record(tmp_path) == record(whole.out)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_two_processes_make_the_same_delta(micro_base, base, tmp_path, train):
    same = {"train": train, "rounds": 2, "training": {**SETTINGS["training"], "micro_batch_size": 2}}
    assert driver(micro_base, tmp_path / "two", processes=2, **same) == 0
    one = run(base, settings(**same), tmp_path / "one")
    two = Delta.from_pretrained(tmp_path / "two" / "delta")
    # Adam makes a whole step of a gradient that is nearly zero, whichever way rounding turns it.
    for name, tensor in tensors(one).items():
        assert (two.tensor(name) - tensor).norm() < 0.01 * tensor.norm(), name
    first, second = (read_json(tmp_path / name / "figures.json")["stages"] for name in ("one", "two"))
    for stage in ("round-1", "round-2"):
        assert second[stage]["pairs"] == first[stage]["pairs"]
        for figure in {"loss_last", *TeamTrainer.watched.values()} - {"padding"}:
            assert second[stage][figure] == pytest.approx(first[stage][figure], rel=1e-2, abs=2e-3), figure
    assert second["held-out-2"]["log_prob"] == pytest.approx(first["held-out-2"]["log_prob"], abs=1e-2)
