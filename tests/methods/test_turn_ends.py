"""Every method on a micro model whose template ends turns as Gemma's does: ends are learnt, and figures are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.chat_families import FAMILIES, family_tokenizer, micro_llama, teach
from skillweave.base import Base, open_base, prompt_ids
from skillweave.base.ends import turn_end_id
from skillweave.delta import Delta
from skillweave.files.read import read_json
from skillweave.methods.cku import CkuConfig
from skillweave.methods.cku.run import run as unlearn
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.e3tir.run import run as warm_up
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run as specialise
from skillweave.methods.tpaw import TpawConfig
from skillweave.methods.tpaw.run import run as self_play
from skillweave.methods.training.answers import read_samples

ASKED = [(f"say {digit}", digit * 3) for digit in "0123456789"]
NAMES = ("Oresa", "Pell", "Zille", "Tam", "Ubo", "Wix", "Yana", "Kor")
TOWNS = ("Tarn", "Murrow", "Helst", "Bor", "Cly", "Dunn", "Eld", "Fenn")
FACTS = [(f"Where was {name} born?", f"In {town}.") for name, town in zip(NAMES, TOWNS, strict=True)]
CALL = ('<tool_call>{"name": "search", "arguments": {"query": "', '"}}</tool_call>')
"""One token each: a call of seven more is short."""


def made(folder: Path, taught: list[tuple[str, str]] | None, steps: int = 0) -> Base:
    """A base that another trainer taught in the form of its template, and that knows of no end but ``<eos>``."""
    tokenizer = family_tokenizer(FAMILIES["gemma"])
    tokenizer.add_tokens(list(CALL))
    model = micro_llama(tokenizer)
    rows = []
    for question, answer in taught or []:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": ids, "labels": ids})
    if rows:
        teach(model, rows, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_base(folder, device="cpu")


def with_delta(base: Base, delta: Delta) -> Any:
    model = type(base.model).from_pretrained(base.path).eval()
    delta.add_to(model)
    return model


def says(model: Any, base: Base, question: str) -> tuple[str, str]:
    """What the model says greedily, and the token that it ends with, by hand: no stop but the two of Gemma."""
    ids = prompt_ids(base.tokenizer, question)
    written: list[int] = []
    while len(written) < 24 and not {1, turn_end_id(base.tokenizer)} & set(written[-1:]):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return base.tokenizer.decode(written[:-1]), base.tokenizer.convert_ids_to_tokens(written[-1])


def rows_at(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": ask, "answer": answer}) + "\n" for ask, answer in rows))
    return str(path)


@pytest.fixture
def task(tmp_path) -> dict[str, Any]:
    return {"source": "jsonl", "path": rows_at(tmp_path / "say.jsonl", ASKED), "splits": {"test": 0, "calibration": 2}}


def test_specialise_teaches_the_end_of_the_template(tmp_path, task):
    base = made(tmp_path / "base", None)
    warm = {"when": "always", "steps": 100, "batch_size": 8, "learning_rate": 5e-3}
    delta = specialise(
        base,
        SpecialiseConfig(
            task=task,
            bf16=False,
            rounds=1,
            warm_start=warm,
            probe_prompts=4,
            prompts_per_round=4,
            samples_per_prompt=4,
            max_new_tokens=8,
            dpo={"steps": 2, "learning_rate": 1e-5},
        ),
        tmp_path / "run",
    )
    learnt = [
        ask
        for ask in ASKED
        if ask[0] in {row.prompt for row in read_samples(tmp_path / "run/probe-after/samples.jsonl")}
    ]
    model = with_delta(base, delta)
    assert [says(model, base, question) for question, _ in learnt] == [(gold, "<end_of_turn>") for _, gold in learnt]
    after = read_samples(tmp_path / "run/probe-after/samples.jsonl")
    assert sum(row.ended.count(True) for row in after) >= 14  # of 16, drawn at temperature 1


def test_self_play_holds_the_end_of_the_template(tmp_path, task):
    base = made(tmp_path / "base", ASKED, 60)
    delta = self_play(
        base,
        TpawConfig(
            task=task,
            bf16=False,
            rounds=1,
            keep="last",
            max_new_tokens=8,
            sampling_batch_size=8,
            training={"steps": 3, "batch_size": 8, "learning_rate": 1e-4},
            drop=["empty", "truncated"],
            sft={"steps": 10, "batch_size": 8, "learning_rate": 1e-3, "turns": "all"},
        ),
        tmp_path / "run",
    )
    stages = read_json(tmp_path / "run/figures.json")["stages"]
    assert stages["held-out-0"]["ended"] == stages["held-out-1"]["ended"] == 1
    assert stages["held-out-1"]["tokens"] == stages["held-out-1"]["target_tokens"] == 4  # three digits and the end
    assert says(with_delta(base, delta), base, "say 4") == ("444", "<end_of_turn>")


def test_unlearning_reads_what_is_known_and_leaves_the_ends(tmp_path):
    base = made(tmp_path / "base", FACTS, 120)
    unseen = [
        ("Where was Abe born?", "In Vorn."),
        ("Where was Cid born?", "In Wend."),
        ("Where was Dot born?", "In Xyl."),
    ]
    config = CkuConfig(
        forget=[rows_at(tmp_path / "forget.jsonl", FACTS[:4])],
        retain=[rows_at(tmp_path / "retain.jsonl", FACTS[4:])],
        unseen=[rows_at(tmp_path / "unseen.jsonl", unseen)],
        bf16=False,
        localise={"layers": "all"},
        training={"steps": 40, "batch_size": 4, "learning_rate": 1e-3},
        watch={"every": 5, "budget": None},
    )
    delta = unlearn(base, config, tmp_path / "run")
    figures = read_json(tmp_path / "run/figures.json")
    assert figures["before"]["forget_strength"] == figures["before"]["forget_memorised"] == 1
    assert figures["before"]["unseen_strength"] < 0.5
    assert figures["after"]["forget_strength"] < 0.6
    model = with_delta(base, delta)
    said = [says(model, base, question) for question, _ in FACTS]
    assert not {text for text, _ in said[:4]} & {gold for _, gold in FACTS[:4]}  # what the figures say
    assert {end for _, end in said} == {"<end_of_turn>"}  # of what is forgotten too
    kept = [text == gold for (text, _), (_, gold) in zip(said[4:], FACTS[4:], strict=True)]
    assert sum(kept) >= 3  # the fourth is held out, and nothing holds it


def test_the_warm_up_of_an_agent_learns_the_end_of_the_template(tmp_path):
    base = made(tmp_path / "base", None)
    task = {
        "source": "builtin",
        "name": "hops",
        "splits": {"train": 10, "calibration": 4, "test": 2},
        "config": {"style": "short", "people": 6, "relations": 2, "least": 2, "most": 2, "places": 0},
    }
    config = E3tirConfig(
        task=task,
        bf16=False,
        instruction="",
        max_length=300,
        rollout={"max_tokens": 240, "temperature": 0.5},
        sft={"steps": 60, "batch_size": 5, "learning_rate": 5e-3},
        evaluate_on=2,
        warm_up={"steps": 1, "n": 2, "m": 2, "prompts": 2, "learning_rate": 1e-5},
        rl={"steps": 0},
    )
    delta = warm_up(base, config, tmp_path / "run")
    figures = read_json(tmp_path / "run/figures.json")
    assert figures["after"]["answered"] == 1  # the conversations end, with Gemma's end token and no other
    history = read_json(tmp_path / "run/warm-up/history.json")
    assert history[0]["completions/clipped_ratio"] == 0
    assert delta.names()
