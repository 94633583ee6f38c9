"""The reward of a conversation: each part alone, and which part replaces which."""

from __future__ import annotations

import pytest

from helpers.micro import micro_tokenizer
from skillweave.methods.e3tir.config import RewardSettings
from skillweave.methods.e3tir.group import reward_parts
from skillweave.tools import Call, CallFormat, Outcome, Toolbox
from skillweave.tools.builtin import calculator
from skillweave.tools.conversation import ConversationSettings, Episode, Start, play
from skillweave.tools.turn import call_text


class Says:
    """Replaces a writer: one conversation with these turns."""

    def __init__(self, tokenizer, turns: list[str]):
        self.stops = [tokenizer.eos_token_id]
        self._turns = iter([[*tokenizer(turn)["input_ids"], tokenizer.eos_token_id] for turn in turns])

    def write(self, contexts, room, seeds):
        yield 0, next(self._turns)


TOOL_STAR = RewardSettings(several_tools=0.1)
FINE, LATE = Outcome("2"), Outcome("timeout", "timeout")
BROKEN, UNKNOWN = Outcome("malformed call", "malformed"), Outcome("unknown tool", "unknown tool")


def worth(score: float, *outcomes: Outcome, names=("search",), answer: str | None = "x", settings=TOOL_STAR) -> dict:
    return reward_parts(
        Episode([1], [2], [1], names=list(names), outcomes=list(outcomes), answer=answer), score, settings
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (worth(1.0, FINE), (1.0, 0.0, 0.0)),
        (worth(0.0, FINE), (0.0, 0.0, 0.0)),
        (worth(0.4, FINE), (0.4, 0.0, 0.0)),
        (worth(1.0, FINE, FINE, names=("search", "python")), (1.0, 0.0, 0.1)),
        (worth(1.0, FINE, FINE, names=("search", "search")), (1.0, 0.0, 0.0)),
        (worth(0.9, FINE, FINE, names=("search", "python")), (0.9, 0.0, 0.0)),  # only beside a right answer
        (worth(1.0, names=()), (1.0, 0.0, 0.0)),
        (worth(0.0, FINE, answer=None), (0.0, -1.0, 0.0)),
        (worth(1.0, BROKEN, FINE), (0.0, -1.0, 0.0)),
        (worth(1.0, UNKNOWN, FINE, names=("search", "python")), (0.0, -1.0, 0.0)),
        (worth(1.0, LATE), (1.0, 0.0, 0.0)),  # a call that was well written is no bad format
    ],
)
def test_the_parts_of_tool_star(parts, expected):
    assert (parts["answer"], parts["format"], parts["tools"]) == expected


@pytest.mark.parametrize(("second", "bonus"), [("reverse", 0.1), ("broken", 0.0), ("calculator", 0.0)])
def test_a_call_that_came_to_nothing_earns_no_bonus_for_several_tools(second, bonus):
    def reverse(text: str) -> str:
        """Turn a text round.

        Args:
            text: the text
        """
        return text[::-1]

    def broken(text: str) -> str:
        """Fail.

        Args:
            text: any text
        """
        raise ValueError(text)

    tokenizer = micro_tokenizer()
    arguments = {"expression": "1+1"} if second == "calculator" else {"text": "ab"}
    turns = [call_text(Call("calculator", {"expression": "1+1"})), call_text(Call(second, arguments)), "2"]
    with Toolbox([calculator, reverse, broken]) as toolbox:
        form = CallFormat(tokenizer, toolbox, instruction="")
        (held,) = play(Says(tokenizer, turns), form, toolbox, [Start([5], 0)], ConversationSettings(), None)
    assert (held.answer, held.calls, held.failures) == ("2", 2, int(second == "broken"))
    assert reward_parts(held, 1.0, TOOL_STAR) == {"answer": 1.0, "format": 0.0, "tools": bonus}


def test_of_two_bad_formats_the_worse_counts_and_not_both():
    settings = RewardSettings(no_answer=-0.3, malformed=-0.7)
    assert sum(worth(0.0, answer=None, settings=settings).values()) == -0.3
    assert sum(worth(1.0, BROKEN, settings=settings).values()) == -0.7
    assert sum(worth(0.0, BROKEN, answer=None, settings=settings).values()) == -0.7


def test_a_format_that_costs_nothing_leaves_the_answer_its_worth():
    settings = RewardSettings(right=2.0, malformed=0.0)
    assert worth(0.5, BROKEN, settings=settings) == {"answer": 1.0, "format": 0.0, "tools": 0.0}
