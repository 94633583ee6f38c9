"""Continuous batching of transformers, taught about packs.

All that we use below its public surface is in this file, in ``prefix_cache`` and in ``paged_attention``.

:class:`PackedManager` is a ``ContinuousBatchingManager``: its scheduler and its paged cache are the library's. Four
things are added.

- **Packs.** Before each step, the packed model is told which token belongs to which pack.
- **Prefixes.** The library shares cached blocks between requests whose tokens are equal. Keys and values also depend on
  the pack that read the tokens. Here a token that one pack reads counts as another token than the same one read by
  another pack (:mod:`~skillweave.engine.prefix_cache`), so blocks are shared between requests of one pack alone.
- **Rows.** The library chooses tokens with one random generator for all requests. :class:`RowSteps` chooses each row's
  token by its own sampling, seed, vocabulary and grammar, and notes log-probabilities.
- **Attention.** ``sdpa`` of the library multiplies the queries of all requests with the keys of all requests, and masks
  most of the result. :func:`~skillweave.engine.paged_attention.paged_attention` computes each request with its own.

tests/engine/test_paged.py fails when a later version of the library changes what is used here.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from skillweave.base.generate import no_probabilities
from skillweave.base.sizes import embedding_rows
from skillweave.engine.interface import AnswerToken, TokenMatcher
from skillweave.engine.paged_attention import ATTENTION
from skillweave.engine.prefix_cache import PackAwareCache, Readers
from skillweave.engine.sampler import RowSampler
from skillweave.weave.packed_model import PackedModel


@dataclass(eq=False)
class PagedRow:
    """What a step must know of a request: who reads its tokens, and how its tokens are chosen.

    - ``pack``: the pack that reads the tokens from ``base_tokens`` on; before it, the plain base reads
    - ``logprobs``: how many of the likeliest tokens are noted; None: no log-probabilities
    - ``chosen``: the token of the last step, which :class:`RowSteps` chose
    """

    name: str
    pack: str | None
    base_tokens: int
    sampler: RowSampler
    logprobs: int | None = None
    matcher: TokenMatcher | None = None
    chosen: AnswerToken | None = None
    error: BaseException | None = None


@dataclass
class StepTally:
    """What the steps did so far; only the engine's thread changes it."""

    steps: int = 0
    tokens: int = 0


class RowSteps(ContinuousBatchingLogitsProcessor):
    """Chooses the token of each row by its own rules, and leaves scores whose argmax it is."""

    def __init__(self, rows: dict[str, PagedRow]) -> None:
        self.supported_kwargs: dict[str, type] = {}
        self.ignored_kwargs: tuple[str, ...] = ()
        self._rows = rows
        self._now: list[PagedRow | None] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        self._now = [self._rows.get(request.state.request_id) for request in requests_with_new_token]
        return torch.zeros(len(self._now), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        chosen = torch.zeros(scores.shape[0], dtype=torch.int64, device=scores.device)
        plain = scores[: len(self._now)].argmax(dim=-1).tolist()  # for greedy rows without a grammar
        finite = scores[: len(self._now)].amax(dim=-1).isfinite().tolist()
        for index, row in enumerate(self._now):
            if row is None:  # cancelled while the step was prepared
                continue
            try:
                chosen[index] = _choose(row, scores[index], plain[index], finite[index])
            except Exception as error:
                row.error = error
        return torch.zeros_like(scores).scatter_(1, chosen[:, None], 1.0)


def _choose(row: PagedRow, scores: Tensor, plain: int, finite: bool) -> int:
    """Choose the next token of a row, note it there, and return it. ``scores`` (V,) may be changed."""
    row.chosen = None
    if not finite:
        raise no_probabilities(float(scores.amax()), 0)
    raw = scores.log_softmax(dim=-1) if row.logprobs is not None else None
    if row.matcher is not None:
        row.matcher.restrict(scores)
    token = plain if row.matcher is None and row.sampler.greedy else row.sampler.draw(scores)
    if row.matcher is not None:
        row.matcher.accept(token)
    if raw is None:
        row.chosen = AnswerToken(token)
    else:
        top = raw.topk(min(row.logprobs or 0, raw.shape[0]))
        likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        row.chosen = AnswerToken(token, float(raw[token]), likeliest)
    return token


@dataclass(frozen=True)
class StepEvent:
    """What a step did for a request: a new token, its end (``length``: at its longest), or its failure."""

    row: PagedRow
    token: AnswerToken | None = None
    ended: bool = False
    error: BaseException | None = None


Result = TypeVar("Result")


class PackedManager(ContinuousBatchingManager):
    """The library's manager, for a packed model.

    - ``deliver(events)`` is called in the manager's thread, once for each step
    - ``max_requests``: the most requests of one step
    - ``step_tokens``: the most tokens of one step; a longer prompt is read in several steps
    - ``cache_tokens``: the tokens whose keys and values the cache has room for
    """

    def __init__(
        self,
        packed: PackedModel,
        *,
        max_requests: int,
        step_tokens: int,
        cache_tokens: int,
        page: int,
        deliver: Callable[[list[StepEvent]], None],
    ) -> None:
        model = packed.model
        self._packed = packed
        self.rows: dict[str, PagedRow] = {}
        self.readers = Readers(embedding_rows(model))
        self.tally = StepTally()
        self._jobs: deque[Callable[[], None]] = deque()
        self._step_error: BaseException | None = None
        config = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=math.ceil(cache_tokens / page),
            max_batch_tokens=max(step_tokens, max_requests),
            max_requests_per_batch=max_requests,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        super().__init__(model, GenerationConfig(do_sample=False), config)
        self._handle: Any = None
        if model.config._attn_implementation == "sdpa" and not _sliding(model):
            self._take_own_attention(math.ceil(cache_tokens / page))
        self.logit_processor.logits_processor.append(RowSteps(self.rows))
        self.logit_processor.tensors_required += 1
        self.logit_processor.do_processing = True
        self._deliver = deliver
        self.output_router = _Router(self, deliver)  # type: ignore[assignment]

    def _take_own_attention(self, blocks: int) -> None:
        """Let steps use :func:`paged_attention`. The library has checked before that it knows the function it had."""
        self._original_attn_impl: Any = "sdpa"
        self.model.set_attn_implementation(ATTENTION)
        # This makes the library name the pages of steps that only decode.
        self.continuous_batching_config.max_blocks_per_request = blocks
        # With a mask of four dimensions, no model makes one of its own. paged_attention does not read it.
        mask = torch.zeros(1, 1, 1, 1, device=self.model.device)
        self._handle = self.model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}) if _steps(kwargs) else None,
            with_kwargs=True,
        )

    def add(self, row: PagedRow, ids: list[int], stops: Sequence[int], room: int) -> None:
        """Put a request into the scheduler's queue."""
        self.rows[row.name] = row
        taken = self.add_request(
            ids, request_id=row.name, max_new_tokens=room, streaming=True, eos_token_id=list(stops)
        )
        if taken is None:
            del self.rows[row.name]
            self._deliver([StepEvent(row, error=self.background_thread_status.fatal_error or _stopped())])

    def drop(self, name: str) -> None:
        """Give a request up; its blocks are free at the next step."""
        self.rows.pop(name, None)
        self.cancel_request(name)

    def between_steps(self, job: Callable[[], Result]) -> Future[Result]:
        """Run a function in the manager's thread between two steps. While it runs, no model computes."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)

        self._jobs.append(run)
        self._wake_up_loop.set()
        return future

    def close(self) -> None:
        """End the thread after the step that it is running, and leave the model as it was."""
        if self.is_running():
            self.stop(hard_stop=True)
        if self._handle is not None:
            self._handle.remove()
        while self._jobs:
            self._jobs.popleft()()

    # -- in the manager's thread ---------------------------------------------------------------------------------------

    def _create_batch_processor(self) -> Any:
        with torch.random.fork_rng():  # the library sets the seed of the process
            processor = super()._create_batch_processor()
        cache: Any = processor.cache
        cache.__class__ = PackAwareCache
        cache.rows, cache.readers = self.rows, self.readers
        return processor

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        if self._jobs:
            with self._plain_attention():
                while self._jobs:
                    self._jobs.popleft()()
        try:
            return super()._generation_loop_body(batch_processor, bootstrapping)
        except Exception as error:
            # Only the requests that were computed can be to blame, if the model raised it.
            if self._step_error is error:
                batch_processor.handle_batch_error(error)
            else:
                batch_processor.fail_all_requests(error)
            return True

    @contextlib.contextmanager
    def _plain_attention(self) -> Iterator[None]:
        """Context in which the model can be called as it is: ``paged|eager`` of the library needs a cache."""
        now = self.model.config._attn_implementation
        if now != "paged|eager":
            yield
            return
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(now)

    def _generation_step(self) -> None:
        assert self.batch_processor is not None
        inputs: Any = self.batch_processor.inputs_and_outputs
        names, last = _packs_of(inputs.requests_in_batch, self.rows)
        self.tally.steps += 1
        self.tally.tokens += len(names)
        self._step_error = None
        try:
            with self._packed.tokens(names, last):
                super()._generation_step()
        except Exception as error:
            self._step_error = error
            raise

    def scrub(self, name: str) -> None:
        """Overwrite the cached values of a request with zeros: a NaN there would spread to whoever gets the block."""
        assert self.batch_processor is not None
        for allocator in self.batch_processor.cache.cache_allocators.values():
            blocks = allocator.block_table.get(name, [])
            allocator._copy_view[torch.tensor(blocks, dtype=torch.int64, device=allocator._copy_view.device)] = 0


class _Router:
    """Takes what the library delivers, and delivers it as :class:`StepEvent`."""

    def __init__(self, manager: PackedManager, deliver: Callable[[list[StepEvent]], None]) -> None:
        self._manager, self._deliver = manager, deliver

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        events = [event for output in outputs if (event := self._event(output)) is not None]
        if events:
            self._deliver(events)

    def fail_and_deliver(self, state: RequestState, error: Exception) -> None:
        row = self._manager.rows.pop(state.request_id, None)
        if row is not None:
            self._deliver([StepEvent(row, error=error)])

    def _event(self, output: Any) -> StepEvent | None:
        row = self._manager.rows.get(output.request_id)
        if row is None:
            return None
        if row.error is not None:
            self._manager.scrub(row.name)
            self._manager.drop(row.name)
            return StepEvent(row, error=row.error)
        ended = output.is_finished()
        if ended:
            del self._manager.rows[row.name]
        return StepEvent(row, row.chosen, ended=ended)


def _packs_of(
    requests: Sequence[FutureRequestState], rows: dict[str, PagedRow]
) -> tuple[list[str | None], list[str | None]]:
    """The pack of each token of a step, and of each hidden state that reaches the head.

    The library feeds the head one state for each request. Those of requests whose prompt is not read to its end come
    last, and are the first token's.
    """
    names: list[str | None] = []
    last: list[str | None] = []
    for request in requests:
        row, end = rows.get(request.state.request_id), request.state.position_offset
        begin = end - request.query_length
        pack, by_base = (None, end) if row is None else (row.pack, row.base_tokens)
        names += [None if at < by_base else pack for at in range(begin, end)]
        if request.has_new_token:
            last.append(names[-1])
    return names, last + names[:1] * (len(requests) - len(last))


def _stopped() -> RuntimeError:
    return RuntimeError("the engine's thread has stopped")


def _steps(kwargs: dict[str, Any]) -> bool:
    return isinstance(kwargs.get("cache"), PagedAttentionCache)


def _sliding(model: Any) -> bool:
    """Whether a layer attends to a window alone, which only the library's attention functions serve."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    return any(kind != "full_attention" for kind in kinds) or getattr(config, "sliding_window", None) is not None
