"""What a conversation is worth: each part by itself, and what takes the place of what."""

from __future__ import annotations

import pytest

from skillweave.methods.e3tir.config import RewardSettings
from skillweave.methods.e3tir.rewards import reward_parts
from skillweave.tools import Outcome
from skillweave.tools.loop import Episode

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


def test_of_two_bad_formats_the_worse_counts_and_not_both():
    settings = RewardSettings(no_answer=-0.3, malformed=-0.7)
    assert sum(worth(0.0, answer=None, settings=settings).values()) == -0.3
    assert sum(worth(1.0, BROKEN, settings=settings).values()) == -0.7
    assert sum(worth(0.0, BROKEN, answer=None, settings=settings).values()) == -0.7


def test_a_format_that_costs_nothing_leaves_the_answer_its_worth():
    settings = RewardSettings(right=2.0, malformed=0.0)
    assert worth(0.5, BROKEN, settings=settings) == {"answer": 1.0, "format": 0.0, "tools": 0.0}
