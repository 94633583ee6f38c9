"""The turn loop, with a writer that says what it is told: who wrote what, what ends a conversation, what overlaps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from pydantic import ValidationError

from helpers.micro import micro_model, micro_tokenizer
from skillweave.tools import EXPERT, POLICY, TOOL, Call, CallFormat, Toolbox
from skillweave.tools.builtin import Python, add_tools
from skillweave.tools.conversation import ConversationSettings, Episode, Start, play
from skillweave.tools.turn import call_text
from skillweave.tools.writer import Writer

TOKENIZER = micro_tokenizer()
END = TOKENIZER.eos_token_id
LONG = ConversationSettings(max_tokens=2000, max_tool_calls=9)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def divide(a: int, b: int) -> float:
    """Divide two numbers.

    Args:
        a: the first
        b: the second
    """
    return a / b


def hang() -> str:
    """Never come back in time."""
    time.sleep(600)
    return "late"


def adding(a: int, b: int) -> str:
    return call_text(Call("add", {"a": a, "b": b}))


class Scripted:
    """Writes the turns that are laid down for each prompt, or what is still missing of one that was begun.

    ``contexts`` and ``seeds`` hold what it was asked with, write by write.
    """

    stops = (END,)

    def __init__(self, **turns: Sequence[str]):
        self.turns = turns
        self.contexts: list[list[str]] = []
        self.seeds: list[list[int]] = []

    def write(self, contexts, room, seeds) -> Iterator[tuple[int, list[int]]]:
        texts = [TOKENIZER.decode(context) for context in contexts]
        self.contexts.append(texts)
        self.seeds.append(list(seeds))
        for index, (text, most) in enumerate(zip(texts, room, strict=True)):
            *before, begun = text.split("<assistant>")
            prompt = before[0].removeprefix("<user>").removesuffix("<end>")
            turn = f"{self.turns[prompt][len(before) - 1]}<end>"
            assert turn.startswith(begun)
            yield index, TOKENIZER(turn.removeprefix(begun))["input_ids"][:most]


@pytest.fixture
def toolbox():
    with Toolbox([add, divide, hang], timeout=2.0) as box:
        yield box


def form_of(toolbox: Toolbox, **options) -> CallFormat:
    return CallFormat(TOKENIZER, toolbox, instruction="", **options)


def start(toolbox: Toolbox, prompt: str = "sum", seed: int = 0) -> Start:
    return Start(form_of(toolbox).prompt_ids(prompt), seed)


def held(toolbox: Toolbox, *turns: str, limits: ConversationSettings = LONG, context: int | None = None) -> Episode:
    """One conversation of these turns."""
    (episode,) = play(Scripted(sum=turns), form_of(toolbox), toolbox, [start(toolbox)], limits, context)
    return episode


def pieces(episode: Episode) -> list[tuple[int, str]]:
    """Who wrote what, piece by piece."""
    found: list[tuple[int, list[int]]] = []
    for token, writer in zip(episode.ids, episode.writers, strict=True):
        if not found or found[-1][0] != writer:
            found.append((writer, []))
        found[-1][1].append(token)
    return [(writer, TOKENIZER.decode(ids)) for writer, ids in found]


# -- turns, calls, answers -------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_until_a_turn_calls_nothing(toolbox):
    episode = held(toolbox, adding(2, 3), f"more: {adding(5, 5)}", " it is 10 ", "never said")
    assert pieces(episode) == [
        (POLICY, f"{adding(2, 3)}<end>"), (TOOL, "<tool>5<end><assistant>"),
        (POLICY, f"more: {adding(5, 5)}<end>"), (TOOL, "<tool>10<end><assistant>"),
        (POLICY, " it is 10 <end>"),
    ]  # fmt: skip
    assert (episode.answer, episode.ended) == ("it is 10", "answer")
    assert (episode.calls, episode.turns, episode.failures, episode.names) == (2, 3, 0, ["add", "add"])
    assert [outcome.text for outcome in episode.outcomes] == ["5", "10"]


def test_the_tokens_are_those_of_the_same_conversation_told_as_a_trace(toolbox):
    episode = held(toolbox, adding(2, 3), adding(4, 5) + adding(1, 1), "done")
    called = [[Call("add", {"a": 2, "b": 3})], [Call("add", {"a": 4, "b": 5}), Call("add", {"a": 1, "b": 1})]]
    messages: list[dict] = [{"role": "user", "content": "sum"}]
    for calls in called:
        told = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        messages += [{"role": "assistant", "content": "", "tool_calls": told}]
        messages += [{"role": "tool", "content": str(sum(call.arguments.values()))} for call in calls]
    prompt, ids, writers = form_of(toolbox).trace([*messages, {"role": "assistant", "content": "done"}])
    assert (episode.prompt, episode.ids) == (prompt, ids)
    assert episode.writers == [POLICY if writer == EXPERT else writer for writer in writers]


def test_an_answer_at_once_has_called_nothing(toolbox):
    episode = held(toolbox, "42")
    assert (episode.answer, episode.calls, episode.turns, episode.outcomes) == ("42", 0, 1, [])
    assert TOOL not in episode.writers


def test_the_calls_of_one_turn_run_side_by_side_and_are_answered_in_their_order():
    meeting = threading.Barrier(3)

    def meet(name: str) -> str:
        """Wait for the others.

        Args:
            name: who comes
        """
        meeting.wait(120)  # breaks, and so fails, unless all three run at once
        return f"{name} was there"

    with Toolbox([meet], timeout=240) as toolbox:
        turn = "".join(call_text(Call("meet", {"name": name})) for name in "abc")
        episode = held(toolbox, turn, "fine")
    assert [outcome.text for outcome in episode.outcomes] == [f"{name} was there" for name in "abc"]
    assert episode.calls == 3
    said = "".join(f"<tool>{name} was there<end>" for name in "abc")
    assert pieces(episode)[1] == (TOOL, f"{said}<assistant>")


FAULTY = {
    "malformed": '<tool_call>{"name": "add", </tool_call>',
    "unknown tool": call_text(Call("subtract", {"a": 1, "b": 2})),
    "wrong arguments": call_text(Call("add", {"a": "1", "b": 2})),
    "exception": call_text(Call("divide", {"a": 1, "b": 0})),
    "timeout": call_text(Call("hang", {})),
}


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"max_tool_calls": -1}])
def test_limits_that_nothing_can_keep_are_refused(limits):
    with pytest.raises(ValidationError, match="greater than or equal to"):
        ConversationSettings(**limits)


def test_a_conversation_without_calls_may_be_asked_for(toolbox):
    none = ConversationSettings(max_tool_calls=0, max_tokens=2000)
    assert held(toolbox, "4", limits=none).answer == "4"
    assert held(toolbox, adding(2, 2), "4", limits=none).ended == "calls"


@pytest.mark.parametrize("fault", FAULTY)
def test_a_call_that_comes_to_nothing_is_told_in_short_and_counted(toolbox, fault):
    episode = held(toolbox, FAULTY[fault] + adding(1, 1), "so be it")
    assert [outcome.fault for outcome in episode.outcomes] == [fault, None]
    assert (episode.calls, episode.failures) == (2, 1)
    assert episode.names == ["add"]  # it got nothing from the other
    writer, said = pieces(episode)[1]
    assert writer == TOOL
    assert said == f"<tool>{episode.outcomes[0].text}<end><tool>2<end><assistant>"
    assert "\n" not in episode.outcomes[0].text
    assert len(episode.outcomes[0].text) <= 300
    assert "Traceback" not in said
    assert episode.answer == "so be it"


def test_a_long_result_is_cut_where_the_form_says():
    def shout() -> str:
        """Say a lot."""
        return "a" * 500

    with Toolbox([shout]) as toolbox:
        writer = Scripted(sum=[call_text(Call("shout", {})), "ok"])
        call_format = form_of(toolbox, max_tool_tokens=10)
        (episode,) = play(writer, call_format, toolbox, [start(toolbox)], LONG, None)
    assert pieces(episode)[1] == (TOOL, "<tool>aaaaaaa...<end><assistant>")


# -- what ends a conversation ----------------------------------------------------------------------------------------


def test_a_turn_beyond_the_most_calls_ends_it_and_calls_nothing(toolbox):
    limits = ConversationSettings(max_tool_calls=2, max_tokens=2000)
    enough = held(toolbox, adding(1, 1), adding(2, 2), "4", limits=limits)
    assert (enough.ended, enough.calls, enough.answer) == ("answer", 2, "4")
    one_more = held(toolbox, adding(1, 1), adding(2, 2) + adding(3, 3), "6", limits=limits)
    assert (one_more.ended, one_more.answer, one_more.calls) == ("calls", None, 1)
    assert [outcome.text for outcome in one_more.outcomes] == ["2"]
    assert pieces(one_more)[-1] == (POLICY, f"{adding(2, 2)}{adding(3, 3)}<end>")
    broken = held(toolbox, FAULTY["malformed"], FAULTY["malformed"], adding(3, 3), limits=limits)
    assert (broken.ended, broken.calls) == ("calls", 2)  # a call that cannot be read is one too


def test_the_calls_before_a_start_count_as_well(toolbox):
    prompt = form_of(toolbox).prompt_ids("sum")
    first = Start(prompt, 0, *prefix(toolbox, adding(1, 1)), [[Call("add", {"a": 1, "b": 1})]])
    writer = Scripted(sum=["", adding(2, 2), "4"])
    limits = ConversationSettings(max_tool_calls=1, max_tokens=2000)
    (episode,) = play(writer, form_of(toolbox), toolbox, [first], limits, None)
    assert (episode.ended, episode.calls) == ("calls", 1)


def test_a_turn_is_cut_where_the_tokens_end(toolbox):
    for most, ended, answer in ((4, "length", None), (5, "answer", "four")):
        episode = held(toolbox, "four", limits=ConversationSettings(max_tokens=most))
        assert (episode.ended, episode.answer, len(episode.ids)) == (ended, answer, most)


def test_what_a_tool_said_is_cut_where_the_tokens_end(toolbox):
    whole = held(toolbox, adding(2, 3), "5")
    written = len(adding(2, 3)) + 1
    said = len("5") + 3  # <tool> <end> <assistant>
    for most in range(written, written + said + 1):
        episode = held(toolbox, adding(2, 3), "5", limits=ConversationSettings(max_tokens=most))
        assert (episode.ended, episode.answer) == ("length", None)
        assert episode.ids == whole.ids[:most]
        assert episode.writers == whole.writers[:most]
    after = held(toolbox, adding(2, 3), "5", limits=ConversationSettings(max_tokens=written + said + 1))
    assert (after.ended, after.ids) == ("length", whole.ids[:-1])


def test_prompt_and_conversation_stay_within_the_context(toolbox):
    prompt = len(start(toolbox).prompt)
    tight = held(toolbox, "a long answer", context=prompt + 6)
    assert (tight.ended, len(tight.ids)) == ("length", 6)
    assert held(toolbox, "a long answer", context=prompt + 14).answer == "a long answer"
    for context in (prompt, prompt - 1):
        assert (held(toolbox, "hi", context=context).ended, held(toolbox, "hi", context=context).ids) == ("length", [])


def test_a_start_without_room_is_at_its_end(toolbox):
    ids, writers = prefix(toolbox, adding(1, 1))
    full = Start(form_of(toolbox).prompt_ids("sum"), 0, ids, writers)
    (episode,) = play(Scripted(), form_of(toolbox), toolbox, [full], ConversationSettings(max_tokens=len(ids)), None)
    assert (episode.ended, episode.ids, episode.turns) == ("length", ids, 0)


# -- many at once ----------------------------------------------------------------------------------------------------


def test_only_those_that_go_on_are_written_again(toolbox):
    writer = Scripted(a=["1"], b=[adding(1, 1), "2"], c=[adding(1, 1), adding(2, 2), "3"])
    starts = [start(toolbox, name) for name in "cab"]
    episodes = play(writer, form_of(toolbox), toolbox, starts, LONG, None)
    assert [episode.answer for episode in episodes] == ["3", "1", "2"]
    asked = [[text.removeprefix("<user>")[0] for text in texts] for texts in writer.contexts]
    assert asked == [["c", "a", "b"], ["c", "b"], ["c"]]


def test_no_conversations_are_held_at_once(toolbox):
    assert play(Scripted(), form_of(toolbox), toolbox, [], LONG, None) == []


def test_each_turn_draws_with_a_seed_of_its_own_that_hangs_on_the_start_alone(toolbox):
    def seeds(*numbers: int) -> list[list[int]]:
        writer = Scripted(sum=[adding(1, 1), adding(1, 1), "2"])
        play(writer, form_of(toolbox), toolbox, [start(toolbox, seed=seed) for seed in numbers], LONG, None)
        return writer.seeds

    alone = [turn[0] for turn in seeds(7)]
    assert [turn[1] for turn in seeds(3, 7, 4)] == alone
    assert len({*alone, *(turn[0] for turn in seeds(8))}) == 6


def test_tools_run_while_other_conversations_are_still_written():
    begun, written = threading.Event(), threading.Event()

    def slow() -> str:
        """Take until everything is written."""
        begun.set()
        return "in time" if written.wait(120) else "too late"

    class OneByOne(Scripted):
        def write(self, contexts, room, seeds):
            for index, ids in super().write(contexts, room, seeds):
                if index == 1:
                    assert begun.wait(120), "the first conversation's tool waits until the second one is written"
                yield index, ids
            written.set()  # the tool cannot have ended before

    with Toolbox([slow, add], timeout=240) as toolbox:
        writer = OneByOne(first=[call_text(Call("slow", {})), "ok"], second=["hello"])
        starts = [start(toolbox, "first"), start(toolbox, "second")]
        first, second = play(writer, form_of(toolbox), toolbox, starts, LONG, None)
    assert ([outcome.text for outcome in first.outcomes], second.answer) == (["in time"], "hello")


# -- going on from where somebody else was -----------------------------------------------------------------------------


def prefix(toolbox: Toolbox, *turns: str, begun: str = "") -> tuple[list[int], list[int]]:
    """Tokens and writers of an expert's turns with their results, and of a turn that it began."""
    ids: list[int] = []
    writers: list[int] = []
    with_session = toolbox.open()
    for turn in turns:
        calls = form_of(toolbox).read(turn).calls
        results = form_of(toolbox).result_ids(with_session.start(calls).result())
        for writer, piece in ((EXPERT, TOKENIZER(f"{turn}<end>")["input_ids"]), (TOOL, results)):
            ids += piece
            writers += [writer] * len(piece)
    rest = TOKENIZER(begun)["input_ids"]
    return [*ids, *rest], [*writers, *[EXPERT] * len(rest)]


@pytest.mark.parametrize("cut", [1, 12, 40, len(adding(20, 3))])
def test_a_turn_that_the_expert_began_is_read_as_one_with_what_the_policy_adds(toolbox, cut):
    ids, writers = prefix(toolbox, adding(1, 1), begun=adding(20, 3)[:cut])
    began = Start(form_of(toolbox).prompt_ids("sum"), 0, ids, writers, [[Call("add", {"a": 1, "b": 1})]])
    writer = Scripted(sum=[adding(1, 1), adding(20, 3), "23"])
    (episode,) = play(writer, form_of(toolbox), toolbox, [began], LONG, None)
    assert (episode.answer, episode.calls, episode.turns) == ("23", 2, 2)
    assert [outcome.text for outcome in episode.outcomes] == ["23"]  # of the calls it made itself
    assert episode.ids[: len(ids)] == ids
    assert episode.writers[: len(ids)] == writers
    added = [piece for piece in pieces(episode) if piece[0] == POLICY]
    assert added == [(POLICY, f"{adding(20, 3)[cut:]}<end>"), (POLICY, "23<end>")]
    assert EXPERT not in episode.writers[len(ids) :]


def test_an_answer_that_the_expert_began_is_read_whole(toolbox):
    ids, writers = prefix(toolbox, begun="twenty-")
    began = Start(form_of(toolbox).prompt_ids("sum"), 0, ids, writers)
    (episode,) = play(Scripted(sum=["twenty-three"]), form_of(toolbox), toolbox, [began], LONG, None)
    assert episode.answer == "twenty-three"


def python(code: str) -> str:
    return call_text(Call("python", {"code": code}))


def test_stateful_tools_are_brought_to_where_the_expert_left_them():
    with Toolbox(timeout=240) as toolbox:
        add_tools(toolbox, ["python"], None)
        ids, writers = prefix(toolbox, python("x = 5"), python("x = x + 1"))
        calls = [[Call("python", {"code": code})] for code in ("x = 5", "x = x + 1")]
        starts = [Start(form_of(toolbox).prompt_ids(name), 0, ids, writers, calls) for name in ("one", "two", "bare")]
        writer = Scripted(
            one=["", "", python("x = x * 2"), python("x"), "a"],
            two=["", "", python("x = x * 10"), python("x"), "b"],
            bare=[python("x"), "c"],
        )
        starts[2] = Start(starts[2].prompt, 0)
        one, two, bare = play(writer, form_of(toolbox), toolbox, starts, LONG, None)
    assert [outcome.text for outcome in one.outcomes][1:] == ["12"]
    assert [outcome.text for outcome in two.outcomes][1:] == ["60"]  # no branch sees what another did
    assert bare.outcomes[0].fault == "exception"
    assert one.calls == two.calls == 4


def test_branches_that_leave_the_expert_at_one_point_share_its_calls():
    begun = 0

    def counting():
        nonlocal begun
        begun += 1
        return Python().python

    with Toolbox(timeout=240) as toolbox:
        toolbox.register_stateful(counting)
        began = Start(form_of(toolbox).prompt_ids("sum"), 0, calls=[[Call("python", {"code": "x = 5"})]])
        before = begun
        writer = Scripted(sum=[python("x = x + 1"), python("x"), "6"])
        episodes = play(writer, form_of(toolbox), toolbox, [began] * 9, LONG, None)
        assert begun == before + 1  # the other eight begin as copies
    assert [episode.outcomes[1].text for episode in episodes] == ["6"] * 9


def test_what_remembers_nothing_is_not_called_again():
    seen: list[int] = []

    def count(number: int) -> int:
        """Count.

        Args:
            number: what
        """
        seen.append(number)
        return number

    with Toolbox([count]) as toolbox:
        ids, writers = prefix(toolbox, call_text(Call("count", {"number": 1})))
        began = Start(form_of(toolbox).prompt_ids("sum"), 0, ids, writers, [[Call("count", {"number": 1})]])
        writer = Scripted(sum=["", call_text(Call("count", {"number": 2})), "2"])
        (episode,) = play(writer, form_of(toolbox), toolbox, [began], LONG, None)
    assert seen == [1, 2]  # once by the expert, once by the policy
    assert episode.names == ["count", "count"]  # the conversation used it twice


# -- with a model ----------------------------------------------------------------------------------------------------


def test_a_model_says_the_same_in_any_company(toolbox):
    model, call_format = micro_model(), form_of(toolbox)
    begun = json.dumps({"name": "add", "arguments": {"a": 1, "b": 2}})[:-1]
    ids, writers = prefix(toolbox, begun=f"<tool_call>{begun}")
    starts = [Start(call_format.prompt_ids(prompt), seed) for seed, prompt in enumerate(("a", "what is it", "sum"))]
    starts += [Start(call_format.prompt_ids("sum"), seed, ids, writers) for seed in range(3)]
    limits = ConversationSettings(max_tokens=80)

    def played(which: Sequence[Start], batch_size: int) -> list[Episode]:
        return play(Writer(model, TOKENIZER, batch_size=batch_size), call_format, toolbox, which, limits, 256)

    together = played(starts, 64)
    assert together == [episode for one in starts for episode in played([one], 64)]
    assert together == played(starts, 2)
    assert len({tuple(episode.ids) for episode in together}) == len(starts)
    assert all(len(episode.ids) <= 80 for episode in together)
