"""The task and the base of all TPAW runs here, and one unbroken run that many tests look at."""

from __future__ import annotations

import shutil
import sys

import pytest

from helpers.digits import Repeats
from helpers.selfplay import Whole, settings
from skillweave.base import open_base
from skillweave.methods.tpaw import run as run_module
from skillweave.methods.tpaw.run import run
from skillweave.methods.tpaw.team import Team
from skillweave.methods.training.run import Run

team_module = sys.modules["skillweave.methods.tpaw.team"]


@pytest.fixture(autouse=True)
def task(monkeypatch):
    task = Repeats()
    monkeypatch.setattr(run_module, "load_task", lambda spec: task)
    return task


@pytest.fixture
def few(monkeypatch):
    """Where little is enough."""
    few = Repeats(8, 10)
    monkeypatch.setattr(run_module, "load_task", lambda spec: few)
    return few


@pytest.fixture(scope="session")
def base(micro_base):
    return open_base(micro_base, device="cpu")


@pytest.fixture(scope="session")
def whole(base, tmp_path_factory):
    """Made once for all tests, which must not write into it."""
    seen = Whole(
        tmp_path_factory.mktemp("whole"),
        tmp_path_factory.mktemp("players"),
        Repeats(),
        {name: tensor.clone() for name, tensor in base.model.state_dict().items()},
    )
    join, dismiss, train, score = Team.join, Team.dismiss, Run.train, team_module.answer_log_probs
    asked, log_probs = [], Team.log_probs

    def on_disk() -> list[int]:
        return sorted(int(folder.name) for folder in (seen.out / "players").iterdir())

    def joined(self, number):
        join(self, number)
        shutil.copytree(seen.out / "players" / str(number), seen.kept / str(number))
        seen.teams.append(("join", on_disk()))

    def dismissed(self, stay):
        dismiss(self, stay)
        seen.teams.append(("dismiss", on_disk()))

    def trained(self, folder, how, rows, *rest):
        seen.trained_on[folder.name] = rows
        return train(self, folder, how, rows, *rest)

    def naming(self, number, name, sides):
        asked[:] = [number, name]
        return log_probs(self, number, name, sides)

    def scored(model, inputs):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.scored.append((*asked, tuple(ids[mask.bool()].tolist())))
        return score(model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_task", lambda spec: seen.task)
        patch.setattr(Team, "join", joined)
        patch.setattr(Team, "dismiss", dismissed)
        patch.setattr(Team, "log_probs", naming)
        patch.setattr(Run, "train", trained)
        patch.setattr(team_module, "answer_log_probs", scored)
        seen.delta = run(base, settings(), seen.out)
    return seen
