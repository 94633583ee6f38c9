"""What the server counts and measures, for Prometheus: one series for each pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from skillweave import __version__
from skillweave.engine.interface import EngineCounters
from skillweave.serve.residency import PackStatus

OUTCOMES = ("stop", "length", "tool_calls", "cancelled", "failed")
"""How a request may end: as OpenAI names the ends of answers, given up by its client or the server, or with a fault."""

UNKNOWN = "(unknown)"
"""The pack in the series of requests whose pack the server does not have. No pack has this name."""

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_EACH_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ServerMetrics:
    """The series of one server, in a registry of its own.

    - ``knows``: whether a name may become a series; every other name is counted as :data:`UNKNOWN`, so that a client
      cannot create series. It is asked for every token.
    """

    def __init__(self, knows: Callable[[str], bool]) -> None:
        self._knows = knows
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "skillweave_requests", "Answers by pack and by how they ended", ["pack", "outcome"], registry=registry
        )
        self._prompt_tokens = Counter("skillweave_prompt_tokens", "Tokens of prompts", ["pack"], registry=registry)
        self._completion_tokens = Counter(
            "skillweave_completion_tokens", "Tokens of answers, end tokens included", ["pack"], registry=registry
        )
        self._first_token = Histogram(
            "skillweave_first_token_seconds",
            "Seconds from a request to the first token of its answer",
            ["pack"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self._each_token = Histogram(
            "skillweave_token_seconds",
            "Seconds for each token of an answer after the first",
            ["pack"],
            buckets=_EACH_TOKEN,
            registry=registry,
        )
        self._whole = Histogram(
            "skillweave_request_seconds",
            "Seconds from a request to the end of its answer",
            ["pack"],
            buckets=_WHOLE,
            registry=registry,
        )
        self._routes = Counter(
            "skillweave_routes", "Prompts that the router sent to each pack", ["pack"], registry=registry
        )
        self._abstentions = Counter(
            "skillweave_route_abstentions", "Prompts that the router left to the plain base", registry=registry
        )
        self._responses = Counter(
            "skillweave_http_responses", "Responses of the API by status code", ["status"], registry=registry
        )

    def watch(
        self,
        counters: Callable[[], EngineCounters],
        status: Callable[[], Sequence[PackStatus]],
    ) -> None:
        """Also show the engine's queue and the packs' memory, as they are when somebody asks for the metrics."""
        self.registry.register(_LiveFigures(counters, status))

    def text(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

    # -- what happens --------------------------------------------------------------------------------------------------

    def routed(self, pack: str | None) -> None:
        """Count a choice of the router; None is the plain base."""
        if pack is None:
            self._abstentions.inc()
        else:
            self._routes.labels(self._label(pack)).inc()

    def first_token(self, pack: str, seconds: float) -> None:
        """Note how long a request waited for its first token."""
        self._first_token.labels(self._label(pack)).observe(seconds)

    def ended(self, pack: str, outcome: str, seconds: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answer that has ended in one of the :data:`OUTCOMES`, with its tokens."""
        label = self._label(pack)
        self._requests.labels(label, outcome).inc()
        self._whole.labels(label).observe(seconds)
        self._prompt_tokens.labels(label).inc(prompt_tokens)
        self._completion_tokens.labels(label).inc(completion_tokens)

    def further_tokens(self, pack: str, count: int, seconds: float) -> None:
        """Note that tokens came so long after those before; each of them took its share of the time."""
        series = self._each_token.labels(self._label(pack))
        for _ in range(count):
            series.observe(seconds / count)

    def responded(self, status: int) -> None:
        """Count a response of the API."""
        self._responses.labels(str(status)).inc()

    def forget(self, pack: str) -> None:
        """Remove the series of a pack that the server has no more."""
        for family in (
            self._requests, self._prompt_tokens, self._completion_tokens, self._first_token, self._each_token,
            self._whole, self._routes,
        ):  # fmt: skip
            family.remove_by_labels({"pack": pack})

    def _label(self, pack: str) -> str:
        return pack if self._knows(pack) else UNKNOWN


class _LiveFigures(Collector):
    """Figures that are read when they are asked for."""

    def __init__(self, counters: Callable[[], EngineCounters], status: Callable[[], Sequence[PackStatus]]) -> None:
        self._counters, self._status = counters, status

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name nothing, so that registering does not ask an engine that is not open yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield _gauge("skillweave_info", "The version of the server", ["version"], [((__version__,), 1)])
        try:
            counters = self._counters()
        except RuntimeError:  # the engine is not open yet
            counters = None
        if counters is not None:
            yield GaugeMetricFamily(
                "skillweave_requests_waiting", "Requests in the queue of the engine", value=counters.waiting
            )
            yield GaugeMetricFamily(
                "skillweave_requests_running", "Requests that the model is answering", value=counters.running
            )
            yield CounterMetricFamily("skillweave_steps", "Forward passes of the model", value=counters.steps)
            yield CounterMetricFamily(
                "skillweave_step_tokens", "Tokens of all forward passes", value=counters.step_tokens
            )
        yield from _pack_figures(self._status())


def _pack_figures(status: Sequence[PackStatus]) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    yield _gauge(
        "skillweave_pack_resident_bytes", "Bytes that a pack takes in memory", ["pack"],
        [((one.name,), (one.bytes or 0) * (one.level == "memory")) for one in status],
    )  # fmt: skip
    yield _gauge(
        "skillweave_pack_level", "1 for the place where a pack is", ["pack", "level"],
        [((one.name, one.level), 1) for one in status],
    )  # fmt: skip
    yield _gauge(
        "skillweave_pack_pinned", "1 if a pack always stays in memory", ["pack"],
        [((one.name,), int(one.pinned)) for one in status],
    )  # fmt: skip
    yield _gauge(
        "skillweave_pack_in_use", "Requests that hold a pack in memory", ["pack"],
        [((one.name,), int(one.in_use)) for one in status],
    )  # fmt: skip
    yield _gauge(
        "skillweave_pack_load_seconds", "Seconds of the last load of a pack", ["pack"],
        [((one.name,), one.load_seconds) for one in status if one.load_seconds is not None],
    )  # fmt: skip
    for name, about, read in (
        ("skillweave_pack_hits", "Requests that found their pack in memory", lambda one: one.hits),
        ("skillweave_pack_loads", "Times that a pack was loaded", lambda one: one.loads),
        ("skillweave_pack_evictions", "Times that a pack had to leave memory", lambda one: one.evictions),
    ):
        family = CounterMetricFamily(name, about, labels=["pack"])
        for one in status:
            family.add_metric([one.name], read(one))
        yield family


def _gauge(name: str, about: str, labels: list[str], values: list[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=labels)
    for where, value in values:
        family.add_metric(list(where), value)
    return family
