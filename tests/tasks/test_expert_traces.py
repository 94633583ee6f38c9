"""Expert traces: written files can be read and matched to prompts, and every mistake names its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.micro import micro_tokenizer
from skillweave.errors import UserError
from skillweave.tasks.expert_traces import match_traces, read_traces, scripted_traces, write_traces
from skillweave.tasks.task import prompt_id
from skillweave.tasks.with_tools import load_agent
from skillweave.tools import Call, CallFormat, Toolbox
from skillweave.tools.builtin import calculator
from skillweave.tools.turn import call_text

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
    assert trace.messages == [system, ASK, first, result, ANSWER]  # with its ids, as it was given
    write_traces(tmp_path / "again.jsonl", [trace])
    assert read_traces(tmp_path / "again.jsonl") == [trace]


def test_what_a_file_may_hold_is_what_the_protocol_can_write(tmp_path: Path) -> None:
    pair = {**call(id="a"), "tool_calls": [*call(id="a")["tool_calls"], *call(id="b")["tool_calls"]]}
    told = [{"role": "tool", "content": name.upper(), "tool_call_id": name} for name in "ba"]
    written = {"role": "assistant", "content": call_text(Call("calculator", {"expression": "2+3"}))}
    rows = [{"messages": [ASK, pair, *told, ANSWER]}, {"messages": [ASK, written, RESULT, ANSWER]}]
    swapped, in_the_text = read_traces(write(tmp_path / "t.jsonl", *rows))
    form = CallFormat(micro_tokenizer(), Toolbox([calculator]))
    text = form.text(form.trace(swapped.messages)[1])
    assert text.index("<tool>A<end>") < text.index("<tool>B<end>")  # by their ids, in the order of the calls
    assert form.trace(in_the_text.messages) == form.trace([ASK, call(), RESULT, ANSWER])


def test_several_calls_in_a_turn_and_none_at_all_are_traces_too(tmp_path: Path) -> None:
    two = {**call(), "tool_calls": call()["tool_calls"] * 2}
    rows = [{"messages": [ASK, two, RESULT, RESULT, call(), RESULT, ANSWER]}, {"messages": [ASK, ANSWER]}]
    many, none = read_traces(write(tmp_path / "t.jsonl", *rows))
    assert [many.messages, none.messages] == [row["messages"] for row in rows]
    assert many.id == none.id == prompt_id("What is 2+3?")


MISTAKES = [
    ([ANSWER], "message 1: the expert's first message must follow one of the user"),
    ([ASK], "must end with the assistant's answer"),
    ([ASK, call(), RESULT], "must end with the assistant's answer"),
    ([ASK, call()], "message 2: the assistant makes 1 calls and 0 results follow"),
    ([ASK, call(), ANSWER], "message 2: the assistant makes 1 calls and 0 results follow"),
    ([ASK, RESULT, ANSWER], "message 2: a tool's result without a call that it answers"),
    ([ASK, call(), RESULT, RESULT, ANSWER], "message 2: the assistant makes 1 calls and 2 results follow"),
    ([ASK, ANSWER, ASK, ANSWER], "message 3: the role is 'user', expected the assistant's next turn"),
    ([ASK, call(), RESULT, ASK, ANSWER], "message 4: the role is 'user', expected the assistant's next turn"),
    ([ASK, {"role": "assistant", "content": " "}], "message 2: the assistant says nothing and calls nothing"),
    ([ASK, call(), {"role": "tool"}, ANSWER], "message 3: the tool's 'content' must be a text, found None"),
    (
        [ASK, call(id="a"), {**RESULT, "tool_call_id": "b"}, ANSWER],
        "message 2: its calls are ['a'], the results answer ['b']",
    ),
    ([ASK, call("2+3"), RESULT, ANSWER], "message 2: the arguments of 'calculator' are not JSON"),
    ([ASK, call("[2]"), RESULT, ANSWER], "message 2: the arguments of 'calculator' must be an object"),
    ([{"role": "human", "content": "Hi"}, ANSWER], "message 1: the role is 'human'"),
    ([{"role": "user", "content": 3}, ANSWER], "message 1: the user's 'content' must be a text"),
    ([ASK, {**ANSWER, "content": "I write <tool_call> now"}], "message 2: malformed call"),
    ([{"role": "user", "content": "\ud83d"}, ANSWER], "'messages' 'content' holds half a character, '\\ud83d'"),
    ([ASK, call({"expression": "\ud83d"}), RESULT, ANSWER], "'expression' holds half a character, '\\ud83d'"),
    ([], "the trace has no assistant message"),
    ("hello", 'expected {"messages": [...]} with an object for each message'),
    ([ASK, "hello"], 'expected {"messages": [...]} with an object for each message'),
]


@pytest.mark.parametrize(("messages", "said"), MISTAKES)
def test_a_mistake_names_file_and_line(tmp_path: Path, messages: object, said: str) -> None:
    path = write(tmp_path / "t.jsonl", {"messages": [ASK, ANSWER]}, {"messages": messages})
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2: ") + ".*" + re.escape(said)):
        read_traces(path)


def test_rows_that_are_no_objects_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: expected .* found \{'message': \[\]\}"):
        read_traces(write(tmp_path / "a.jsonl", {"message": []}))
    with pytest.raises(UserError, match=r"line 1: expected .* found list \[1\]"):
        read_traces(write(tmp_path / "b.jsonl", [1]))
    with pytest.raises(UserError, match="is empty: write at least one row"):
        read_traces(write(tmp_path / "c.jsonl"))
