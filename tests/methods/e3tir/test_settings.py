"""Settings: `preset: paper` gives defaults, a run saves the values themselves, what has no effect is refused."""

from __future__ import annotations

import pytest

from helpers.agents import TASK
from skillweave.config import read_config
from skillweave.errors import UserError
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.config import PRESETS


def test_the_values_of_a_preset_are_defaults_and_explicit_keys_win():
    paper = E3tirConfig.model_validate({"task": TASK, "preset": "paper"})
    for name, part in PRESETS["paper"].items():
        assert getattr(paper, name).model_dump().items() >= part.items()
    given = {"task": TASK, "preset": "paper", "expert": {"mixing": "sum"}, "rl": {"steps": 3, "learning_rate": 1e-3}}
    mixed = E3tirConfig.model_validate(given)
    assert (mixed.expert.mixing, mixed.expert.filter, mixed.expert.detach) == ("sum", True, True)
    assert (mixed.rl.steps, mixed.rl.n, mixed.rl.learning_rate) == (3, 16, 1e-3)


def test_a_saved_run_holds_the_values_and_reads_back_equal():
    paper = E3tirConfig.model_validate({"task": TASK, "preset": "paper", "expert": {"k": 5}})
    saved = paper.model_dump(mode="json")
    assert "preset" not in saved
    assert E3tirConfig.model_validate(saved).model_dump(mode="json") == saved
    spelt_out = E3tirConfig.model_validate({"task": TASK, **PRESETS["paper"], "expert": saved["expert"]})
    assert spelt_out.model_dump(mode="json") == saved


def test_an_unknown_preset_is_named_with_those_that_exist(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("task: {source: builtin, name: hops}\npreset: papre\n")
    with pytest.raises(UserError, match=r"preset.*'paper'"):
        read_config(E3tirConfig, file)


@pytest.mark.parametrize(
    ("expert", "reason"),
    [
        ({"branch": "own", "mixing": "sum"}, "has no expert"),
        ({"branch": "own", "ask": "failed"}, "has no expert"),
        ({"branch": "whole", "uncertain": 0.5}, "share of a branch's prefix"),
        ({"mixing": "sum", "uncertain": 0.0}, "share of a branch's prefix"),
    ],
)
def test_what_would_have_no_effect_is_refused(expert, reason):
    with pytest.raises(UserError, match=reason):
        read_config(E3tirConfig, {"task": TASK, "expert": expert})


def test_own_branches_ask_for_no_expert():
    own = E3tirConfig.model_validate({"task": TASK, "experts": None, "expert": {"branch": "own", "filter": False}})
    assert own.asks_experts == {}
