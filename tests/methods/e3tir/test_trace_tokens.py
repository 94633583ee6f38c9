"""Encoded traces: the tokens are those of the template, with their writers and the calls before a position."""

from __future__ import annotations

import pytest

from helpers.agents import WORDS, call_format_of
from helpers.micro import micro_tokenizer
from skillweave.methods.e3tir.trace_tokens import encode_trace, supervised_rows
from skillweave.tasks.expert_traces import Trace, scripted_traces
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools import EXPERT, POLICY, TOOL, Call, Toolbox
from skillweave.tools.builtin import add_tools
from skillweave.tools.turn import call_text

TOKENIZER = micro_tokenizer(words=WORDS)


def called(*calls: Call, content: str = "") -> dict:
    told = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": told}


TWO, THREE = Call("calculator", {"expression": "1+1"}), Call("calculator", {"expression": "1+2"})
SET, GET = Call("python", {"code": "x = 5"}), Call("python", {"code": "x"})
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "how much?"},
    called(TWO, THREE, content="both: "),
    {"role": "tool", "content": "2"},
    {"role": "tool", "content": "3"},
    called(SET),
    {"role": "tool", "content": "(nothing was printed)"},
    called(GET),
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": " 10 "},
]


@pytest.fixture
def form():
    with Toolbox() as toolbox:
        add_tools(toolbox, ["calculator", "python"], None)
        yield call_format_of(AgentTask(None, toolbox, None))


@pytest.fixture
def trace(form):
    return encode_trace(form, Trace("t", MESSAGES[:2], MESSAGES))


def as_plain_text(messages) -> list[dict]:
    """The messages with their calls in the content, because the micro template cannot render calls."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            + "".join(
                call_text(Call(call["function"]["name"], call["function"]["arguments"]))
                for call in message.get("tool_calls", [])
            ),
        }
        for message in messages
    ]


def test_the_tokens_are_those_of_the_rendered_conversation(trace, hops, traces):
    rendered = TOKENIZER.apply_chat_template(as_plain_text(MESSAGES), tokenize=True, return_dict=False)
    assert trace.prompt + trace.ids == rendered
    assert TOKENIZER.decode(trace.prompt) == "<system>be brief<end><user>how much?<end><assistant>"
    assert trace.answer == "10"
    for told in scripted_traces(hops, hops.task.split("train")):
        found = traces[told.id]
        assert found.prompt + found.ids == TOKENIZER.apply_chat_template(
            as_plain_text(told.messages), tokenize=True, return_dict=False
        )


def test_the_expert_wrote_its_turns_with_their_end_and_nothing_else(trace):
    by_expert = TOKENIZER.decode([id for id, who in zip(trace.ids, trace.writers, strict=True) if who == EXPERT])
    turns = [message["content"] for message in as_plain_text(MESSAGES) if message["role"] == "assistant"]
    assert by_expert == "".join(f"{turn}<end>" for turn in turns)
    assert trace.expert_tokens == trace.writers.count(EXPERT) == len(TOKENIZER(by_expert)["input_ids"])
    assert set(trace.writers) == {EXPERT, TOOL}


def test_a_branch_may_begin_at_what_the_expert_wrote_but_for_its_first_token(trace):
    expected = [at > 0 and writer == EXPERT for at, writer in enumerate(trace.writers)]
    assert trace.eligible.tolist() == expected
    assert not trace.eligible[0]
    assert trace.eligible[-1]  # the answer's end token: the policy may go on talking


def test_a_start_has_the_calls_whose_results_lie_before_it(trace, form):
    made = [[TWO, THREE], [SET], [GET]]
    ends = [at for at in range(1, len(trace.ids)) if trace.writers[at - 1] == TOOL and trace.writers[at] == EXPERT]
    assert len(ends) == 3
    for at in range(1, len(trace.ids)):
        start = trace.start(at, 7)
        assert (start.prompt, start.seed) == (trace.prompt, 7)
        assert (start.ids, start.writers) == (trace.ids[:at], trace.writers[:at])
        assert start.calls == made[: sum(end <= at for end in ends)]


def test_the_whole_trace_is_a_conversation_that_ended_with_its_answer(trace):
    episode = trace.episode()
    assert (episode.prompt, episode.ids, episode.writers) == (trace.prompt, trace.ids, trace.writers)
    assert (episode.answer, episode.ended, episode.calls) == ("10", "answer", 4)
    assert set(episode.names) == {"calculator", "python"}
    assert POLICY not in episode.writers
    episode.ids.append(0)
    assert trace.ids[-1] != 0  # a copy


def test_a_trace_without_a_call_is_an_answer_alone(form):
    messages = [*MESSAGES[:2], {"role": "assistant", "content": "two"}]
    trace = encode_trace(form, Trace("t", MESSAGES[:2], messages))
    assert (trace.calls, trace.answer, set(trace.writers)) == ([], "two", {EXPERT})
    assert TOKENIZER.decode(trace.ids) == "two<end>"


def test_supervised_rows_learn_what_the_expert_wrote(traces):
    rows = supervised_rows(list(traces.values()))
    assert len(rows) == len(traces)
    for row, trace in zip(rows, traces.values(), strict=True):
        assert row["input_ids"] == trace.prompt + trace.ids
        for at, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            written = at >= len(trace.prompt) and trace.writers[at - len(trace.prompt)] == EXPERT
            assert label == (token if written else -100)
