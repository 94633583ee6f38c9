"""Methods on rows that are more than a prompt and a text: given pairs, calls of tools, several answers to a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillweave.base import open_base
from skillweave.delta import Delta
from skillweave.errors import UserError
from skillweave.files.read import read_json
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.specialise.run import run
from skillweave.methods.training.answers import read_samples
from skillweave.micro import MicroShape, micro_model, micro_tokenizer

TEMPLATE = (
    "{% if tools %}<system>{{ tools | tojson }}<end>{% endif %}{% for m in messages %}<{{ m['role'] }}>"
    "{{ m['content'] or '' }}{% for c in m.get('tool_calls') or [] %}"
    "<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def settings(path: Path, rows: list[dict], **more) -> SpecialiseConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": "file", "path": str(path), "splits": {"test": 0, "calibration": 0}}
    short = {"steps": 2, "batch_size": 2}
    return SpecialiseConfig(
        task=task,
        bf16=False,
        probe_prompts=3,
        samples_per_prompt=2,
        prompts_per_round=3,
        max_new_tokens=4,
        **{"warm_start": {**short, "when": "always"}, "dpo": short, **more},
    )


def steps(out: Path, stage: str) -> dict:
    return read_json(out / stage / "figures.json")


@pytest.fixture(scope="module")
def base(micro_base):
    return open_base(micro_base, device="cpu")


PREFERENCES = [{"prompt": f"ask {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(5)]


def test_the_pairs_of_the_task_are_what_dpo_learns_from(base, tmp_path: Path) -> None:
    run(base, settings(tmp_path / "p.jsonl", PREFERENCES, warm_start={"when": "never"}), tmp_path / "out")
    figures = steps(tmp_path / "out", "round-1")
    assert (figures["given_pairs"], figures["prompts"], figures["steps"]) == (5, 0, 2)
    assert not (tmp_path / "out" / "round-1" / "samples.jsonl").exists()


def test_given_pairs_go_with_sampled_ones_or_are_left_out_as_asked(base, tmp_path: Path, capsys) -> None:
    path = tmp_path / "p.jsonl"
    run(base, settings(path, PREFERENCES, pairs="both"), tmp_path / "both")
    figures = steps(tmp_path / "both", "round-1")
    assert (figures["given_pairs"], figures["prompts"]) == (5, 3)
    run(base, settings(path, PREFERENCES, pairs="own"), tmp_path / "own")
    assert steps(tmp_path / "own", "round-1")["given_pairs"] == 0
    assert "the rejected answers of 5 train rows are not used" in " ".join(capsys.readouterr().err.split())
    plain = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    with pytest.raises(UserError, match="pairs is given, and no train row"):
        run(base, settings(tmp_path / "q.jsonl", plain, pairs="given"), tmp_path / "none")


def test_calls_of_tools_are_learnt_and_preferred_as_the_template_writes_them(tmp_path: Path) -> None:
    micro_model(MicroShape(context=512), 1).save_pretrained(tmp_path / "base")
    micro_tokenizer(chat_template=TEMPLATE).save_pretrained(tmp_path / "base")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"n": 1}}}]}
    rows = [{"messages": [{"role": "user", "content": f"call {n}"}, call], "tools": TOOLS} for n in range(4)]
    out = tmp_path / "out"
    delta = run(open_base(tmp_path / "base", device="cpu"), settings(tmp_path / "t.jsonl", rows), out)
    assert isinstance(delta, Delta)
    samples = read_samples(out / "probe-before" / "samples.jsonl")
    assert all(row.prompt["tools"] == TOOLS for row in samples)
    assert {row.gold for row in samples} == {'<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call>'}
    assert steps(out, "warm-start")["examples"] == 4


def test_a_prompt_with_several_answers_is_asked_once_and_all_are_learnt(base, tmp_path: Path) -> None:
    rows = [{"prompt": "Name a colour.", "answer": colour} for colour in ("red", "blue", "teal")]
    rows.append({"prompt": "Name a day.", "answer": "Monday"})
    made = settings(tmp_path / "c.jsonl", rows, rounds=0, warm_start={"when": "always", "steps": 1, "batch_size": 4})
    run(base, made, tmp_path / "out")
    samples = read_samples(tmp_path / "out" / "probe-before" / "samples.jsonl")
    assert sorted(row.prompt for row in samples) == ["Name a colour.", "Name a day."]
    assert steps(tmp_path / "out", "warm-start")["examples"] == 4
