"""Which waiting requests form the next batch."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest

from skillweave.engine.batch import Prepared
from skillweave.engine.worker import next_batch
from skillweave.weave import Route


def request(length: int, room: int = 10, group: str | None = None) -> Prepared:
    return Prepared(Route(group, None), [5] * length, room, group, cast(Any, None))


def test_all_that_wait_share_a_batch_in_their_order() -> None:
    assert next_batch([request(n) for n in (9, 1, 5)], 3, None) == [0, 1, 2]
    assert next_batch([request(7)], 3, None) == [0]


def test_the_oldest_is_taken_with_those_that_are_most_like_it() -> None:
    waiting = [request(n) for n in (50, 3, 49, 2, 51, 90, 50)]
    assert next_batch(waiting, 4, None) == [0, 6, 2, 4]
    waiting = [request(5, room) for room in (60, 8, 64, 9)]
    assert next_batch(waiting, 2, None) == [0, 2]


def test_only_one_group_shares_a_batch() -> None:
    waiting = [request(5, group=group) for group in (None, "a", None, "b", "a")]
    assert next_batch(waiting, 8, None) == [0, 2]
    assert next_batch(waiting[1:], 8, None) == [0, 3]


def test_the_longest_prompt_and_the_largest_room_fit_together() -> None:
    waiting = [request(20, 12), request(5, 27), request(4, 9), request(1, 31)]
    assert next_batch(waiting, 4, 32) == [0, 2]
    assert next_batch(waiting[1:], 4, 32) == [0, 1]
    assert next_batch(waiting, 4, None) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [None, 60])
def test_nobody_starves_while_others_keep_coming(limit: int | None) -> None:
    rng = Random(3)
    waiting: list[tuple[int, Prepared]] = []
    born: dict[int, tuple[int, int]] = {}
    left: dict[int, int] = {}
    number = 0
    for turn in range(300):
        for _ in range(rng.randrange(9) if turn < 200 else 0):
            born[number] = turn, len(waiting)
            waiting.append((number, request(rng.randrange(1, 40), rng.randrange(1, 21), rng.choice([None, None, "a"]))))
            number += 1
        if waiting:
            chosen = next_batch([one for _, one in waiting], 4, limit)
            assert chosen[0] == 0
            assert len(set(chosen)) == len(chosen) <= 4
            for index in chosen:
                left[waiting[index][0]] = turn
            waiting = [one for index, one in enumerate(waiting) if index not in chosen]
    assert not waiting
    assert all(left[one] - turn <= before for one, (turn, before) in born.items())
