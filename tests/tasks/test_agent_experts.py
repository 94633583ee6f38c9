"""Traces of experts: what is written is read again, matched to its prompt, and every mistake names its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from skillweave.errors import UserError
from skillweave.tasks.agents.experts import match_traces, read_traces, scripted_traces, write_traces
from skillweave.tasks.agents.load import load_agent
from skillweave.tasks.task import prompt_id

SPEC = {"source": "builtin", "name": "steps", "splits": {"train": 12, "calibration": 2, "test": 4}}

ASK = {"role": "user", "content": "What is 2+3?"}
ANSWER = {"role": "assistant", "content": "5"}
RESULT = {"role": "tool", "content": "5"}


def call(arguments: object = None, **more) -> dict:
    function = {"name": "calculator", "arguments": {"expression": "2+3"} if arguments is None else arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function, **more}]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scripted_traces_come_back_as_they_were_written(tmp_path: Path) -> None:
    agent = load_agent(SPEC)
    traces = scripted_traces(agent, agent.task.split("train"))
    write_traces(tmp_path / "traces.jsonl", traces)
    read = read_traces(tmp_path / "traces.jsonl")
    assert [(trace.id, trace.messages) for trace in read] == [(trace.id, trace.messages) for trace in traces]
    found, strangers = match_traces(read, agent.task)
    assert strangers == 0
    assert set(found) == {entry.id for entry in agent.task.split("train")}
    assert [path.name for path in tmp_path.iterdir()] == ["traces.jsonl"]


def test_traces_of_other_prompts_are_counted_and_only_train_prompts_count(tmp_path: Path) -> None:
    agent = load_agent(SPEC)
    known = scripted_traces(agent, agent.task.split("train")[:2])
    held = scripted_traces(agent, agent.task.split("test"))
    found, strangers = match_traces([*known, *held, known[0]], agent.task)
    assert {key: len(traces) for key, traces in found.items()} == {known[0].id: 2, known[1].id: 1}
    assert strangers == 4
    with pytest.raises(UserError, match="none of the 4 expert traces answers a train prompt of task 'steps'"):
        match_traces(held, agent.task)


def test_the_form_of_openais_api_is_read(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    first = {**call('{"expression": "2+3"}', id="a"), "content": None, "refusal": None}
    result = {**RESULT, "tool_call_id": "a", "name": "calculator"}
    (trace,) = read_traces(write(tmp_path / "t.jsonl", {"messages": [system, ASK, first, result, ANSWER], "cost": 1}))
    assert trace.prompt == [system, ASK]
    assert trace.id == prompt_id([system, ASK]) != prompt_id("What is 2+3?")
    assert trace.messages == [system, ASK, call(), RESULT, ANSWER]


def test_several_calls_in_a_turn_and_none_at_all_are_traces_too(tmp_path: Path) -> None:
    two = {**call(), "tool_calls": call()["tool_calls"] * 2}
    rows = [{"messages": [ASK, two, RESULT, RESULT, call(), RESULT, ANSWER]}, {"messages": [ASK, ANSWER]}]
    many, none = read_traces(write(tmp_path / "t.jsonl", *rows))
    assert [many.messages, none.messages] == [row["messages"] for row in rows]
    assert many.id == none.id == prompt_id("What is 2+3?")


MISTAKES = [
    ([ANSWER], "must follow one of the user, found assistant"),
    ([ASK], "must end with the expert's answer"),
    ([ASK, call(), RESULT], "must end with the expert's answer"),
    ([ASK, call()], "message 2 is the last and calls a tool"),
    ([ASK, call(), ANSWER], "message 3: 1 calls before it have no result"),
    ([ASK, RESULT, ANSWER], "must follow one of the user, found user tool"),
    ([ASK, call(), RESULT, RESULT, ANSWER], "message 4 is a tool's result, but no call is waiting"),
    ([ASK, ANSWER, ASK, ANSWER], "message 2 calls no tool and is not the last"),
    ([ASK, call(), RESULT, ASK, ANSWER], "message 4 is the user's: a trace answers one question"),
    ([ASK, {"role": "assistant", "content": " "}], "message 2 is the answer, and is empty"),
    ([ASK, call(), {"role": "tool"}, ANSWER], "message 3 has no content"),
    ([ASK, call(id="a"), {**RESULT, "tool_call_id": "b"}, ANSWER], "write results in the calls' order"),
    ([ASK, call("2+3"), RESULT, ANSWER], "messages.1.tool_calls.0.function.arguments"),
    ([ASK, call("[2]"), RESULT, ANSWER], "messages.1.tool_calls.0.function.arguments"),
    ([{"role": "human", "content": "Hi"}, ANSWER], "messages.0.role"),
    ([{"role": "user", "content": 3}, ANSWER], "messages.0.content"),
    ([], "messages: "),
    ("hello", "messages: "),
]


@pytest.mark.parametrize(("messages", "said"), MISTAKES)
def test_a_mistake_names_file_and_line(tmp_path: Path, messages: object, said: str) -> None:
    path = write(tmp_path / "t.jsonl", {"messages": [ASK, ANSWER]}, {"messages": messages})
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2: ") + ".*" + re.escape(said)):
        read_traces(path)


def test_rows_that_are_no_objects_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: messages: Field required"):
        read_traces(write(tmp_path / "a.jsonl", {"message": []}))
    with pytest.raises(UserError, match="line 1: the row: "):
        read_traces(write(tmp_path / "b.jsonl", [1]))
    with pytest.raises(UserError, match="is empty: write at least one row"):
        read_traces(write(tmp_path / "c.jsonl"))
