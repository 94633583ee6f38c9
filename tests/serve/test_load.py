"""The load generator: planned arrivals, the times of streams, the summary, and errors by status."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from helpers.live_server import live
from helpers.small_server import SmallEngine, small_service
from skillweave.errors import UserError
from skillweave.serve.app import create_app
from skillweave.serve.load import (
    LoadPlan,
    RequestTiming,
    checked_mix,
    load_summary,
    measure,
    percentiles,
    planned_requests,
)
from skillweave.serve.settings import ServeConfig


def served(engine: SmallEngine, **settings: Any) -> Any:
    service = small_service(engine)
    return create_app(service, ServeConfig(**settings), None, write_log=lambda _: None)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_arrivals_are_a_poisson_process_and_models_have_their_shares() -> None:
    plan = LoadPlan({"a": 0.7, "b": 0.3}, requests=4000, rate=20.0, seed=1)
    requests = planned_requests(plan)
    gaps = [later.at - earlier.at for earlier, later in pairwise(requests)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # The mean and the standard deviation of the gaps are both 1/rate; the tolerance is over 4 standard errors.
    assert abs(mean - 0.05) < 0.004
    assert abs(spread - 0.05) < 0.006
    assert abs(Counter(request.model for request in requests)["a"] / 4000 - 0.7) < 0.03
    assert requests == planned_requests(plan)
    assert len({request.prompt for request in requests}) > 3900


def test_without_a_rate_nothing_waits_and_given_prompts_are_used() -> None:
    requests = planned_requests(LoadPlan({"a": 1.0}, requests=50, prompts=("x", "y")))
    assert {request.at for request in requests} == {0.0}
    assert {request.prompt for request in requests} == {"x", "y"}


def test_prompts_have_the_wanted_number_of_words() -> None:
    assert {len(one.prompt.split()) for one in planned_requests(LoadPlan({"a": 1.0}, prompt_words=17))} == {17}


@pytest.mark.parametrize(
    ("mix", "message"), [({"sort": 1.0, "srot": 1.0}, "did you mean 'sort'"), ({"sort": 0.0}, "above 0")]
)
def test_a_wrong_mix_is_told(mix: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_mix(mix, ["sort", "base"])
    assert checked_mix({}, ["sort", "base"]) == {"sort": 1.0, "base": 1.0}


# -- the figures -------------------------------------------------------------------------------------------------------


def test_percentiles_agree_with_a_slow_count() -> None:
    draw = random.Random(0)
    values = [draw.expovariate(1) for _ in range(101)]
    ordered = sorted(values)
    assert percentiles(values) == pytest.approx({"p50": ordered[50], "p95": ordered[95], "p99": ordered[99]})
    assert percentiles([2.0]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert percentiles([]) is None


def test_only_answered_requests_count_for_times_and_throughput() -> None:
    timings = [
        RequestTiming("a", "ok", 2.0, 0.5, 0.1, 10, 16),
        RequestTiming("b", "ok", 4.0, 1.5, 0.3, 10, 24, counted=False),
        RequestTiming("a", "429", 0.01),
        RequestTiming("a", "429", 0.01),
        RequestTiming("a", "connection", 9.0),
    ]
    figures = load_summary(timings, 4.0)
    assert (figures["requests"], figures["answered"], figures["errors"]) == (5, 2, {"429": 2, "connection": 1})
    assert (figures["requests_per_second"], figures["tokens_per_second"]) == (0.5, 10.0)
    assert figures["first_token_seconds"]["p50"] == pytest.approx(1.0)
    assert figures["token_seconds"]["p50"] == pytest.approx(0.2)
    assert figures["total_seconds"]["p99"] == pytest.approx(3.98)
    assert (figures["uncounted"], figures["models"]) == (1, {"a": 4, "b": 1})


def test_a_load_without_any_answer_has_no_times() -> None:
    figures = load_summary([RequestTiming("a", "500", 1.0)], 1.0)
    assert (figures["first_token_seconds"], figures["tokens_per_second"]) == (None, 0.0)


# -- against a server --------------------------------------------------------------------------------------------------


def test_the_times_are_those_of_the_server() -> None:
    with live(served(SmallEngine("abc", pause=0.05))) as url:
        result = asyncio.run(measure(f"{url}/v1", "none", LoadPlan({}, requests=12, concurrency=4)))
    figures = result["figures"]
    assert (figures["answered"], figures["errors"], figures["completion_tokens"]) == (12, {}, 48)
    assert set(figures["models"]) <= {"auto", "base", "sort", "reverse"}
    assert 0.05 <= figures["first_token_seconds"]["p50"] < 1
    assert 0.2 <= figures["total_seconds"]["p50"] < 2
    assert 3 * 0.2 <= figures["seconds"] < 10  # 12 requests, four at once
    assert len(result["requests"]) == 12


def test_arrivals_do_not_wait_for_each_other() -> None:
    with live(served(SmallEngine("a", pause=0.15))) as url:
        result = asyncio.run(measure(f"{url}/v1", "none", LoadPlan({"sort": 1.0}, requests=10, rate=50.0)))
    assert result["figures"]["answered"] == 10
    assert result["figures"]["seconds"] < 3  # one after the other would take 6


def test_refusals_are_counted_by_status() -> None:
    with live(served(SmallEngine("a", pause=0.15), max_streams=2)) as url:
        result = asyncio.run(measure(f"{url}/v1", "none", LoadPlan({"sort": 1.0}, requests=6, concurrency=6)))
    assert result["figures"]["answered"] == 2
    assert result["figures"]["errors"] == {"429": 4}


def test_a_missing_server_and_a_wrong_key_are_told() -> None:
    with pytest.raises(UserError, match="no server answers"):
        asyncio.run(measure("http://127.0.0.1:9/v1", "none", LoadPlan({})))
    with (
        live(create_app(small_service(), ServeConfig(), "the-key", write_log=lambda _: None)) as url,
        pytest.raises(UserError, match="needs its key, and got none or a wrong one: set SKILLWEAVE_API_KEY"),
    ):
        asyncio.run(measure(f"{url}/v1", "none", LoadPlan({})))
