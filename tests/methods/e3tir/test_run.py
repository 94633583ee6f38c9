"""E3-TIR end to end on a partly trained micro model: its stages, its figures, and mistakes in settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from helpers.agents import SFT, SHORT, TASK, WORDS, call_format_of, merged, note_groups, settings
from helpers.left import tensors
from skillweave.base import Sampling, generate
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir import run as run_module
from skillweave.methods.e3tir.run import run
from skillweave.methods.e3tir.watch import evaluate_agent
from skillweave.methods.training.processes import Processes
from skillweave.tasks.expert_traces import scripted_traces, write_traces
from skillweave.tasks.with_tools import load_agent
from skillweave.tools import POLICY, Call


def with_delta(base, delta: Delta):
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    delta.add_to(model)
    return model


# -- the whole of it --------------------------------------------------------------------------------------------------


def test_the_stages_and_their_figures(whole, traces):
    figures = whole.figures()
    stages = figures["stages"]
    assert list(stages) == ["before", "sft", "warm-up", "rl", "after"]
    assert (figures["before"], figures["after"]) == (stages["before"], stages["after"])
    assert figures["seed"] == 0
    assert figures["traces"] == 10
    assert figures["expert_tokens"] == sum(trace.expert_tokens for trace in traces.values())
    for name in ("before", "after"):
        assert {"success", "calls", "failed_calls", "answered", "tokens"} <= set(stages[name])
    assert stages["sft"]["held_out"] == 4  # the solver's traces on the calibration prompts
    assert 0 < stages["sft"]["held_out_loss"] < 10
    for name in ("warm-up", "rl"):
        assert 0 <= stages[name]["equal_groups"] < 1
        assert 0 <= stages[name]["cut_off"] <= 1
    for name, steps in (("sft", 2), ("warm-up", 3), ("rl", 3)):
        assert stages[name]["steps"] == steps
        assert all(math.isfinite(value) for value in stages[name].values())
    assert stages["warm-up"]["expert_tokens"] == figures["expert_tokens"]
    assert stages["rl"]["expert_tokens"] == 0
    assert not list(whole.out.rglob("checkpoint-*"))
    assert not list(whole.out.rglob("policy"))


def test_the_warm_up_has_experts_and_rl_more_of_its_own(whole, traces):
    assert [(name, step) for name, step, _ in whole.played] == [(n, s) for n in ("warm-up", "rl") for s in range(3)]
    for name, _, groups in whole.played:
        assert len({group.entry.id for group in groups}) == 2
        for group in groups:
            assert group.entry.id in traces
            sizes = (len(group.pool(False)), len(group.pool(True)))
            assert sizes == ((3, 3) if name == "warm-up" else (4, 0))
    for name in ("warm-up", "rl"):  # no prompt again before all had their turn
        assert len({group.entry.id for stage, _, groups in whole.played if stage == name for group in groups}) == 6


def test_the_log_and_the_figures_are_of_what_was_played(whole):
    for name in ("warm-up", "rl"):
        played = [groups for stage, _, groups in whole.played if stage == name]
        log = read_json(whole.out / name / "history.json")
        assert len(log) == len(played)
        sampled = 0
        for groups, entry in zip(played, log, strict=True):
            own = [member for group in groups for member in group.pool(False)]
            sampled += sum(member.episode.writers.count(POLICY) for group in groups for member in group.members)
            assert entry["agent/success"] == pytest.approx(sum(member.score for member in own) / len(own))
            rewards = [member.reward for group in groups for member in group.members if member.joined]
            assert entry["reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
        assert whole.figures(name)["sampled_tokens"] == sampled
        assert whole.figures(name)["success"] == pytest.approx(log[-1]["agent/success"])


def test_the_evaluations_and_the_trees(whole, hops):
    for name in ("warm-up", "rl"):
        curve = read_json(whole.out / name / "curve.json")
        assert [look["step"] for look in curve] == [0, 2, 3]  # 0: what the stage before it left
        assert curve[-1]["sampled"] == whole.figures(name)["sampled_tokens"] > curve[1]["sampled"] > 0
        assert curve[0]["sampled"] == 0
        assert all(0 <= look["success"] <= 1 for look in curve)
        assert sorted(path.name for path in (whole.out / name / "trees").iterdir()) == ["step-0.txt", "step-2.txt"]
    drawn = (whole.out / "warm-up" / "trees" / "step-0.txt").read_text()
    assert any(f"{entry.prompt}  answer: {entry.answer}" in drawn for entry in hops.task.split("train"))
    assert "self" in drawn
    assert "expert (" in drawn


def test_the_delta_is_what_was_judged_and_can_be_used(whole, base, hops):
    delta = Delta.from_pretrained(whole.out / "delta")
    assert delta.provenance["method"] == "e3tir"
    model = with_delta(base, delta)
    held_out = hops.task.split("calibration")[:2]
    found = evaluate_agent(model, hops, call_format_of(hops), held_out, settings().rollout)
    for key, value in found.items():
        assert whole.figures()["after"][key] == pytest.approx(value), key
    ((answer,),) = generate(model, base.tokenizer, [held_out[0].prompt], Sampling(max_new_tokens=12))
    assert answer.startswith(WORDS[0])  # it calls


def test_the_base_is_as_it_was(whole, base):
    assert all(torch.equal(tensor, whole.before[name]) for name, tensor in base.model.state_dict().items())
    assert all(whole.delta.tensor(name).any() for name in whole.delta.names())


def test_the_settings_are_written_as_they_were_resolved(whole, base):
    written = read_json(whole.out / "config.json")
    assert written["method"] == "e3tir"
    assert written["base"]["fingerprint"] == base.fingerprint
    assert E3tirConfig.model_validate(written["config"]) == settings(sft=SFT)
    assert {"torch", "transformers", "trl"} <= set(written["versions"])


def test_it_is_known_by_its_name():
    method = get_method("e3tir")
    assert (method.config, method.module) == (E3tirConfig, run_module.__name__)


def test_a_finished_run_is_not_run_again(base, whole, monkeypatch):
    monkeypatch.setattr(run_module, "_Agent", None)
    again = run(base, settings(sft=SFT), whole.out)
    assert all(torch.equal(again.tensor(name), whole.delta.tensor(name)) for name in whole.delta.names())


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": 1}, "seed"), ({"expert": {"k": 2}, "clip": 0.3}, "expert, clip"), ({"traces": 9}, "traces"),
     ({"rollout": {"max_tool_calls": 2}}, "rollout")],
)  # fmt: skip
def test_other_settings_in_the_same_folder_are_refused(base, whole, changes, said):
    with pytest.raises(UserError, match=rf"other settings \({said}"):
        run(base, settings(sft=SFT, **changes), whole.out)


def test_other_traces_in_the_same_folder_are_refused(base, hops, tmp_path):
    told = scripted_traces(hops, hops.task.split("train"))
    config = settings(experts=tmp_path / "experts.jsonl", **SHORT)
    write_traces(tmp_path / "experts.jsonl", told)
    run(base, config, tmp_path / "run")
    write_traces(tmp_path / "experts.jsonl", told[1:])
    with pytest.raises(UserError, match="other examples"):
        run(base, config, tmp_path / "run")


@pytest.mark.parametrize("changed", ["corpus.jsonl", "double.py"])
def test_another_corpus_and_other_code_are_another_run(tmp_path, changed):
    (tmp_path / "corpus.jsonl").write_text('{"text": "a pear"}\n')
    (tmp_path / "double.py").write_text(DOUBLE)
    tools = {"names": ["search"], "corpus": tmp_path / "corpus.jsonl", "functions": [f"{tmp_path}/double.py:double"]}
    config = E3tirConfig.model_validate(merged(warm_up={"steps": 0}) | {"task": BARE, "tools": tools})

    def key() -> str:
        return run_module._material(load_agent(config.task, config.tools), config).key

    before = key()
    assert key() == before
    path = tmp_path / changed
    path.write_text(path.read_text().replace("pear", "plum").replace("2 *", "3 *"))
    assert key() != before


DOUBLE = '''
def double(x: int) -> int:
    """Double it.

    Args:
        x: a number
    """
    return 2 * x
'''


# -- kinds of runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"train": "lora", "lora": {"rank": 4}}, {"trainable": r"layers\.1\."}, {"bf16": True},
     {"warm_up": {**SHORT["warm_up"], "updates": 2, "micro_batch_size": 3}},
     {"expert": {"branch": "whole", "ratio": "shaped"}}, {"expert": {"mixing": "sum"}}],
    ids=["lora", "trainable", "bf16", "updates", "whole", "sum"],
)  # fmt: skip
def test_every_kind_of_run_ends_in_a_delta(base, tmp_path, changes):
    delta = run(base, settings(**{**SHORT, "evaluate_on": 1, **changes}), tmp_path)
    names = delta.names()
    assert any(delta.tensor(name).any() for name in names)
    if "trainable" in changes:
        assert all("layers.1." in name for name in names)
    history = read_json(tmp_path / "warm-up" / "history.json")
    assert len(history) == changes.get("warm_up", {}).get("updates", 1)
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    with_delta(base, delta)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_checkpointing_of_gradients_changes_neither_what_is_written_nor_what_is_learnt(base, tmp_path, train):
    found = []
    for checkpointing in (False, True):
        played: list = []
        with pytest.MonkeyPatch.context() as patch:
            note_groups(patch, played)
            config = settings(**SHORT, train=train, lora={"rank": 4}, gradient_checkpointing=checkpointing)
            delta = run(base, config, tmp_path / str(checkpointing))
        ((_, _, groups),) = played
        found.append(([member.episode.ids for group in groups for member in group.members], tensors(delta)))
    (said, learnt), (said_with_it, learnt_with_it) = found
    assert said_with_it == said  # turns are written with the cache, which checkpointing would forbid in training
    for name, tensor in learnt.items():
        assert (learnt_with_it[name] - tensor).norm() <= 0.02 * tensor.norm(), name


def test_the_tools_are_closed_when_a_run_ends_or_fails(base, tmp_path, monkeypatch):
    opened = []

    def opening(*given):
        opened.append(load_agent(*given))
        return opened[-1]

    monkeypatch.setattr(run_module, "load_agent", opening)
    run(base, settings(**{**SHORT, "warm_up": {"steps": 0}, "rl": {"steps": 1, "n": 2}}), tmp_path / "run")
    with pytest.raises(UserError, match="all 10 traces"):
        run(base, settings(**SHORT, max_length=40), tmp_path / "fails")
    assert len(opened) == 2
    for agent in opened:
        with pytest.raises(RuntimeError, match="shutdown"):
            agent.toolbox.open().start([Call("search", {"query": "who"})])


def test_an_experts_file_says_which_prompts_the_warm_up_is_on(base, hops, tmp_path, capsys):
    told = scripted_traces(hops, [*hops.task.split("train")[3:7], *hops.task.split("calibration")[:1]])
    write_traces(tmp_path / "experts.jsonl", told)
    played: list = []
    with pytest.MonkeyPatch.context() as patch:
        note_groups(patch, played)
        changes = {**SHORT, "rl": {"steps": 3, "n": 2}, "warm_up": {"steps": 3, "n": 1, "m": 1}}
        run(base, settings(experts=tmp_path / "experts.jsonl", traces=3, **changes), tmp_path / "run")
    warm_up, rl = ({group.entry.id for stage, _, groups in played if stage == name for group in groups}
                   for name in ("warm-up", "rl"))  # fmt: skip
    assert warm_up < {trace.id for trace in told[:4]}
    assert len(warm_up) == 3
    assert len(rl) == 6  # ordinary RL is on all train prompts
    # The trace on a calibration prompt is for looks at the held-out loss, and there is no supervised training here.
    assert "1 of 5 traces (20%) of" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "figures.json")["traces"] == 3


def test_a_run_without_experts_asks_none(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "scripted_traces", None)
    changes = {**SHORT, "warm_up": {"steps": 0}, "rl": {"steps": 1, "n": 2}}
    run(base, settings(**changes), tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert list(figures["stages"]) == ["before", "rl", "after"]
    assert (figures["traces"], figures["expert_tokens"]) == (0, 0)


def test_prompts_that_leave_no_room_are_left_out_of_rl(base, tmp_path, hops):
    prompts = {len(call_format_of(hops).prompt_ids(entry.prompt)) for entry in hops.task.split("train")}
    assert prompts == {13}
    short = {**SHORT, "warm_up": {"steps": 0}, "rl": {"steps": 1, "n": 2}}
    run(base, settings(**{**short, "max_length": 14}), tmp_path / "one token of room")
    with pytest.raises(UserError, match="longer than 13 tokens"):
        run(base, settings(**{**short, "max_length": 13}), tmp_path / "none")


def test_success_is_the_mean_over_entries_whatever_the_temperature(base, hops):
    form, entries = call_format_of(hops), hops.task.split("train")
    together = evaluate_agent(base.model, hops, form, entries, settings().rollout)
    hot = settings(rollout={"temperature": 5.0, "top_p": 0.5}).rollout
    alone = [evaluate_agent(base.model, hops, form, [entry], hot) for entry in entries]
    assert 0 < together["calls"] <= 3
    for key, value in together.items():
        assert value == pytest.approx(sum(one[key] for one in alone) / len(entries)), key


# -- mistakes ---------------------------------------------------------------------------------------------------------


BARE = {"source": "builtin", "name": "sort_numbers", "splits": {"train": 4, "calibration": 2, "test": 2}}
"""A task without tools and without an expert."""


@pytest.mark.parametrize(
    ("changes", "asks", "remedy"),
    [({"warm_up": {"steps": 1}}, "warm_up.m asks", "set warm_up.m to 0"),
     ({"rl": {"steps": 1, "n": 1, "m": 1}}, "rl.m asks", "set rl.m to 0"),
     ({"sft": SFT}, "sft asks", "set sft to null"),
     ({"sft": SFT, "warm_up": {"steps": 1}}, "sft and warm_up.m ask", "set sft to null and warm_up.m to 0")],
)  # fmt: skip
def test_a_task_without_an_expert_needs_traces_and_is_told_who_asks(base, tmp_path, changes, asks, remedy):
    without = merged(**{**SHORT, "warm_up": {"steps": 0}, **changes}) | {"task": BARE, "tools": {"names": ["python"]}}
    said = f"experts: {asks} for expert traces, and there are none: name a JSONL file of traces, or {remedy}"
    with pytest.raises(UserError, match=f"{said}$"):
        run(base, E3tirConfig.model_validate(without), tmp_path)


@pytest.mark.parametrize("most", [0, 1])
def test_traces_of_more_calls_than_a_rollout_may_make_are_left_out(base, hops, tmp_path, capsys, most):
    changes = {**SHORT, "rollout": {"max_tool_calls": most}}
    with pytest.raises(UserError, match=rf"all 10 traces make more calls than rollout.max_tool_calls \({most}\)"):
        run(base, settings(**changes), tmp_path / "none")
    told = scripted_traces(hops, hops.task.split("train")[:4])
    answer = {"role": "assistant", "content": told[0].messages[-1]["content"]}
    told[0] = replace(told[0], messages=[*told[0].messages[:1], answer])
    write_traces(tmp_path / "experts.jsonl", told)
    run(base, settings(**changes, experts=tmp_path / "experts.jsonl"), tmp_path / "run")
    assert "3 of 4 traces (75%) make more calls than" in " ".join(capsys.readouterr().err.split())
    assert read_json(tmp_path / "run" / "figures.json")["traces"] == 1


@pytest.mark.parametrize("changes", [{"rollout": {"max_tokens": 20}}, {"max_length": 40}])
def test_traces_that_are_all_too_long_are_refused(base, tmp_path, changes):
    with pytest.raises(UserError, match="all 10 traces are longer than"):
        run(base, settings(**{**SHORT, **changes}), tmp_path)


def test_unknown_tools_are_refused(base, tmp_path):
    unknown = merged() | {"task": BARE, "tools": {"names": ["calculater"]}}
    with pytest.raises(UserError, match="calculater"):
        run(base, E3tirConfig.model_validate(unknown), tmp_path)


def test_prompts_that_do_not_divide_over_the_processes_are_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "join", classmethod(lambda cls, device: Processes(0, 4)))
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    monkeypatch.setattr(Processes, "from_first", lambda self, make: make())
    with pytest.raises(UserError, match="prompts 2 does not divide over 4 processes"):
        run(base, settings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"warm_up": {"n": 1, "m": 0}}, "a group needs two"), ({"warm_up": {"n": 3, "m": 2, "updates": 4}}, "divide"),
     ({"warm_up": {"steps": 0}, "rl": {"steps": 0}}, "nothing is trained"), ({"expert": {"lam": 1.5}}, "lam"),
     ({"experts": 3}, "experts"), ({"sft": {"steps": 0}}, "sft.steps"),
     ({"clip": math.inf}, "clip"), ({"rollout": {"temperature": math.inf}}, "temperature"),
     ({"warm_up": {"learning_rate": math.inf}}, "learning_rate"), ({"reward": {"no_answer": -math.inf}}, "no_answer"),
     ({"reward": {"malformed": math.nan}}, "malformed"), ({"reward": {"malformed": 0.1}}, "malformed"),
     ({"reward": {"right": math.inf}}, "right"), ({"tools": {"names": ["calculator"]}}, "brings its own tools"),
     ({"task": "x.jsonl"}, "brings no tools"), ({"task": BARE}, "brings no tools"),
     ({"task": {**TASK, "config": {"people": 1}}}, None)],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(base, tmp_path, changes, said):
    if said is None:
        with pytest.raises(UserError, match="people"):
            run(base, settings(**changes), tmp_path)
    else:
        with pytest.raises(ValidationError, match=said):
            settings(**changes)


@pytest.mark.parametrize("told", [None, "", "call the tools"])
def test_the_instruction_may_stand_at_the_top_as_it_once_did(told):
    old = merged(rollout={"top_p": 0.9})
    del old["rollout"]["instruction"]
    config = E3tirConfig.model_validate({**old, "instruction": told})
    assert config == settings(rollout={"top_p": 0.9, "instruction": told})
    assert config.tool_use.instruction == told
    # Written in the old place, so that the keys of builds and the config.json of runs stay what they were.
    written = config.model_dump(mode="json")
    assert (written["instruction"], "instruction" in written["rollout"]) == (told, False)
    assert E3tirConfig.model_validate(written) == config
    with_object = {**old, "instruction": told, "rollout": E3tirConfig.model_validate(old).rollout}
    assert E3tirConfig.model_validate(with_object) == config
    alone = E3tirConfig.model_validate({"task": TASK, "instruction": told})
    assert alone.rollout.instruction == told


def test_an_instruction_in_both_places_is_refused():
    with pytest.raises(ValidationError, match="'instruction' is set twice: keep"):
        settings(instruction="")
    with pytest.raises(ValidationError, match="rollout"):
        E3tirConfig.model_validate({"task": TASK, "instruction": "", "rollout": 3})


def test_tensorboard_gets_what_the_log_has(base, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(base, settings(tensorboard=True, sft=None, rl={"steps": 0}), tmp_path)
    (events,) = (tmp_path / "warm-up" / "tensorboard").rglob("events.*")
    read = EventAccumulator(str(events.parent)).Reload()
    log = read_json(tmp_path / "warm-up" / "history.json")
    for key in ("agent/success", "experts/joined", "loss"):
        told = read.Scalars(f"train/{key}")
        assert [scalar.value for scalar in told] == pytest.approx([entry[key] for entry in log])


def test_tensorboard_without_its_package_is_told_before_any_work(base, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run(base, settings(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
