"""A skill that calls tools in a weave: it is scored with its tools and answers beside packs without tools."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from helpers.agents import TASK, merged
from helpers.tiny import TASK as SORT
from helpers.tiny import TINY
from skillweave.base import Sampling, open_base
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods import get_method
from skillweave.methods.e3tir.watch import evaluate_agent
from skillweave.pack import Skillpack
from skillweave.pipeline import build, read_weave_config
from skillweave.pipeline.config import SkillConfig, WeaveConfig
from skillweave.tasks.with_tools import ToolUse
from skillweave.tools.conversation import OpenTools, begin, converse
from skillweave.weave import AUTO, Conversation, Reply, Weave

SETTINGS = merged(warm_up={"steps": 2}, rl={"steps": 0}, evaluate_on=0)
USE = get_method("e3tir").config.model_validate(SETTINGS).tool_use


@pytest.fixture(scope="module")
def roomy(taught, tmp_path_factory):
    """The taught model with a longer context, for the everyday prompts that a router learns from."""
    folder = shutil.copytree(taught, tmp_path_factory.mktemp("roomy") / "micro")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 256}))
    return folder


@pytest.fixture(scope="module")
def built(roomy, tmp_path_factory):
    """The folder of a weave with an agent and a skill without tools."""
    folder = tmp_path_factory.mktemp("agents")
    config = {
        "base": str(roomy), "dtype": "float32", "zip": {"ratio": 0.5}, "score": {"max_new_tokens": 8},
        "skills": {
            "hops": {"task": TASK, "method": "e3tir", "settings": {k: v for k, v in SETTINGS.items() if k != "task"}},
            "sort": {"task": SORT, "settings": TINY},
        },
    }  # fmt: skip
    (folder / "weave.yaml").write_text(yaml.safe_dump(config))
    build(read_weave_config(str(folder / "weave.yaml")), folder / "weave", command="test")
    return folder / "weave"


@pytest.fixture(scope="module")
def weave(built):
    return Weave.from_pretrained(built)


def rows(built, skill, arm):
    text = (built.with_name("weave.work") / skill / f"score-{arm}" / "answers.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_method_says_how_its_skill_is_asked():
    assert isinstance(USE, ToolUse)
    assert (USE.instruction, USE.max_tokens, USE.max_tool_calls) == ("", 70, 3)
    assert get_method("tpaw").config.model_validate({"task": SORT}).tool_use is None


@pytest.mark.parametrize("arm", ["base", "specialist", "pack", "routed"])
def test_a_build_scores_an_agent_with_its_tools_and_others_without(built, arm):
    held = rows(built, "hops", arm)
    assert all(set(row["conversation"]) for row in held)
    assert sum(row["calls"] for row in held) > 0
    assert any("<tool_call>" in row["conversation"] for row in held)
    assert all("conversation" not in row for row in rows(built, "sort", arm))


def test_the_score_of_the_base_is_what_the_method_measures(built, roomy, hops):
    base = open_base(roomy, device="cpu")
    want = evaluate_agent(base.model, hops, USE.call_format(base.tokenizer, hops.toolbox), hops.task.split("test"), USE)
    assert read_json(built / "report.json")["skills"]["hops"]["base"] == want["success"]


def test_a_ready_pack_is_asked_as_its_skill_says(built):
    hops, sort = (
        {"task": task, "pack": str(built / "packs" / name)} for name, task in (("hops", TASK), ("sort", SORT))
    )
    skills = {"hops": {**hops, "tools": {"instruction": ""}}, "sort": sort}
    config = WeaveConfig.model_validate({"base": "micro", "skills": skills})
    assert config.tool_use("hops") == ToolUse(instruction="")
    assert config.tool_use("sort") is None
    with pytest.raises(ValueError, match="`tools` belongs to `pack`"):
        SkillConfig.model_validate({"task": TASK, "method": "e3tir", "tools": {}})


def test_every_prompt_is_answered_as_its_pack_alone_would(weave, hops):
    prompts = [entry.prompt for entry in hops.task.split("train")[:6]]
    packs = ["hops", None, "sort", "hops", None, "sort"]
    mixed = weave.generate(prompts, packs, tools=OpenTools(hops.toolbox, USE))
    assert [reply.pack for reply in mixed] == packs
    for prompt, pack, reply in zip(prompts, packs, mixed, strict=True):
        assert weave.generate([prompt], pack, tools=OpenTools(hops.toolbox, USE)) == [reply]
    call_format = USE.call_format(weave.base.tokenizer, hops.toolbox)
    plain = converse(weave.base.model, call_format, hops.toolbox, begin(weave.base.model, call_format, prompts), USE)
    for at in (1, 4):
        assert call_format.text(plain[at].ids) == mixed[at].record["conversation"]
    assert len({reply.conversation.last for reply in mixed}) > 1


def test_the_router_chooses_by_the_prompt_as_it_is_asked(weave, hops):
    prompts = [hops.task.split("test")[0].prompt, "Sort from smallest to largest: 9, 4"]
    told = USE.model_copy(update={"instruction": "search"})
    found = weave.generate(prompts, AUTO, tools=OpenTools(hops.toolbox, told))
    routes = weave.route(prompts)
    assert [(reply.pack, reply.confidence) for reply in found] == [(route.pack, route.confidence) for route in routes]


def test_draws_hang_on_the_seed_and_not_on_the_company(weave, hops):
    prompts = [entry.prompt for entry in hops.task.split("train")[:4]]

    def drawn(packs, seed):
        return weave.generate(prompts, packs, Sampling(temperature=1.5, seed=seed), tools=OpenTools(hops.toolbox, USE))

    assert drawn(None, 1) == drawn(None, 1) != drawn(None, 2)
    assert drawn([None, "hops", None, "sort"], 1)[2] == drawn(None, 1)[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_pack_whose_weights_diverged_is_named(built, weave, hops, temperature):
    pack = Skillpack.from_pretrained(built / "packs" / "hops")
    for name, tensor in pack.tensors.items():
        if name.endswith("_scale"):
            tensor.fill_(float("nan"))
    with pytest.raises(UserError, match="the pack 'hops' does not act as it did when it was zipped"):
        Weave.of(weave.base, {"hops": pack})
    # Without the probe of its card it is loaded, and fails when it answers.
    unproven = Skillpack(pack.card.model_copy(update={"probe": None}), pack.tensors, pack.carried)
    broken = Weave.of(weave.base, {"hops": unproven})
    prompt = hops.task.split("test")[0].prompt
    with pytest.raises(UserError, match="the pack 'hops' cannot answer: the model gives nan"):
        broken.generate([prompt], "hops", Sampling(temperature=temperature), tools=OpenTools(hops.toolbox, USE))
    assert broken.generate([prompt], None, tools=OpenTools(hops.toolbox, USE))


def test_nothing_is_answered_by_nothing(weave, hops):
    assert weave.generate([], None, tools=OpenTools(hops.toolbox, USE)) == []


def test_no_answer_is_no_empty_answer(hops):
    entry = hops.task.split("test")[0]
    said = Reply("", None, None, "length", Conversation("", "zz", 0, 0))
    assert (said.answer, replace(said, ended="answer").answer) == (None, "")
    accepting = replace(hops.task, scorer=lambda answer, entry: 1.0)
    assert (accepting.score(None, entry), accepting.score("", entry)) == (0.0, 1.0)
