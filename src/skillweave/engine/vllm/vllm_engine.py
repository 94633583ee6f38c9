"""The engine ``vllm``: requests are written as tokens here, and one or many vLLM servers answer them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from skillweave.base import Sampling
from skillweave.base.chat import PromptOrIds
from skillweave.engine.generation import LiveGeneration
from skillweave.engine.interface import EngineBusy, EngineCounters, Grammar, RequestCancelled, check_sampling
from skillweave.engine.vllm.folder import ADAPTERS_FOLDER, BASE_NAME, VllmFolder
from skillweave.engine.vllm.proof import LEAST, PROBE, distance, probe_logprobs
from skillweave.engine.vllm.replicas import Replica, choose
from skillweave.engine.vllm.servers import VllmServer
from skillweave.engine.vllm.speakers import Speakers, VllmSpeaker
from skillweave.engine.vllm.wire import AdapterMissing, ServerFailed, call, completion, stream
from skillweave.errors import UserError, nearest
from skillweave.progress import say_once
from skillweave.weave import Route, Weave

_CONNECT = 5.0
"""Seconds for a connection."""


class VllmEngine:
    """Answers the requests of many callers with vLLM servers: the engine ``vllm``.

    Use it as ``async with VllmEngine(folder, urls) as engine``, and call it from that event loop only. Leaving the
    block cancels all requests that wait or run, and stops the servers that it started.

    - ``folder``: what ``skillweave export vllm`` wrote. Prompts are written and answers read by its tokenizers; no
      weights are opened in this process.
    - ``servers``: URLs of running servers (one or many replicas), or :class:`VllmServer` to be started and stopped here
    - ``adapters_at``: where the servers see the folder's ``adapters/``; None: at the same place as here
    - ``key``: the ``--api-key`` of the servers
    - ``router``: a weave that is open in this process (``Weave.from_pretrained(weave, packs=[])`` loads the base and
      the router alone). The router reads hidden states of the base, which vLLM does not give: without this weave,
      :meth:`route` is refused.
    - ``max_waiting``: the most requests that have no token yet; None: any number. vLLM has the queue.
    - ``patience``: seconds without a token after which a server counts as broken

    A server gets a request if it is the least loaded one; a pack prefers servers that it was answered by before. A
    server that fails is left alone, for longer and longer, and then prepared again. A request whose server fails before
    its first token goes to another one; after that it fails. Adapters that a server lacks are loaded into it.

    Raises :class:`UserError` when it is opened: if no server can be reached, for another model, and for an adapter
    that does not act.
    """

    name = "vllm"

    def __init__(
        self,
        folder: str | Path,
        servers: Sequence[str | VllmServer],
        *,
        adapters_at: str | Path | None = None,
        key: str | None = None,
        router: Weave | None = None,
        max_waiting: int | None = None,
        patience: float = 300.0,
    ) -> None:
        if not servers:
            raise UserError("name at least one vLLM server, for example http://localhost:8000")
        self.folder = VllmFolder(folder)
        self.max_waiting = max_waiting
        self._own = [one for one in servers if isinstance(one, VllmServer)]
        urls = [one.url if isinstance(one, VllmServer) else one.rstrip("/").removesuffix("/v1") for one in servers]
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise UserError(f"'{url}' is no URL of a vLLM server: write it as http://host:port")
        self.replicas = [Replica(url) for url in dict.fromkeys(urls)]
        self._preparing = {one: asyncio.Lock() for one in self.replicas}
        self._adapters = self.folder.path / ADAPTERS_FOLDER if adapters_at is None else Path(adapters_at)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._router = router
        self._patience = patience
        self._speakers = Speakers(self.folder)
        self.context_length = self._speakers.context_length
        self._tasks: dict[LiveGeneration, asyncio.Task[None]] = {}
        self._submitted = self._finished = self._cancelled = self._failed = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._client: httpx2.AsyncClient | None = None
        self._closed = False

    async def __aenter__(self) -> VllmEngine:
        if self._client is not None:
            raise RuntimeError("a VllmEngine is opened once: make another one")
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx2.Timeout(self._patience, connect=_CONNECT)
        self._client = httpx2.AsyncClient(headers=self._headers, limits=limits, timeout=timeout)
        try:
            await asyncio.gather(*(one.start() for one in self._own))
            await asyncio.gather(*(self._prepare_at_start(one) for one in self.replicas))
            if all(one.retry_at for one in self.replicas):
                raise UserError(f"no vLLM server can be reached: {self._reasons()}. Start one as {self._readme()} says")
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for generation in list(self._tasks):
            generation.settle(error=RequestCancelled("the engine was closed before the answer was complete"))
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self._own))
        await self._opened().aclose()

    # -- requests ------------------------------------------------------------------------------------------------------

    def tokenizer(self, pack: str | None) -> Any:
        """The tokenizer with which a pack (None: the plain base) reads and writes."""
        self._check_pack(pack)
        return self._speakers[pack].voice.tokenizer

    async def route(self, prompt: PromptOrIds) -> Route:
        """Let the router choose. Raises :class:`UserError` without a ``router``."""
        if self._router is None:
            raise UserError(
                "the router reads hidden states of the base, which vLLM does not give: name a pack, or open the engine "
                "with router=Weave.from_pretrained(WEAVE, packs=[]), which keeps a copy of the base in this process"
            )
        (route,) = await asyncio.to_thread(self._router.route, [prompt])
        return route

    def submit(
        self,
        prompt: PromptOrIds,
        pack: str | None,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> LiveGeneration:
        """Send a request and return it, as :class:`~skillweave.engine.interface.Engine` says.

        Stop strings are found here, in the text that the pack's own tokenizer gives. Also raises :class:`UserError` for
        a ``grammar``, which needs the scores of every token.
        """
        self._opened()
        if self._closed:
            raise RequestCancelled("the engine is closed")
        check_sampling(sampling)
        self._check_pack(pack)
        if grammar is not None:
            raise UserError("the vllm engine cannot hold an answer to a grammar: serve with the local engine for that")
        if self.max_waiting is not None and self._waiting() >= self.max_waiting:
            raise EngineBusy(f"{self.max_waiting} requests wait already", retry_after=1.0)
        ids = self._speakers.encode(prompt, pack)
        if self.context_length is not None and len(ids) >= self.context_length:
            raise UserError(f"the prompt has {len(ids)} tokens, and the servers have room for {self.context_length}")
        room = int(min(sampling.max_new_tokens, (self.context_length or math.inf) - len(ids)))
        speaker = self._speakers[pack]
        generation = LiveGeneration(stop, asyncio.current_task(), self._settled)
        generation.begin(ids, Route(pack, None), speaker.reader)
        body = completion(pack or BASE_NAME, ids, room, sampling, speaker.stops, logprobs)
        self._submitted += 1
        self._tasks[generation] = asyncio.create_task(self._answer(generation, pack, speaker, body))
        return generation

    def counters(self) -> EngineCounters:
        """Return what the engine has done so far. ``steps`` and ``step_tokens`` are 0: see vLLM's ``/metrics``."""
        live = sum(one.completion_tokens for one in self._tasks)
        return EngineCounters(
            submitted=self._submitted,
            finished=self._finished,
            cancelled=self._cancelled,
            failed=self._failed,
            running=len(self._tasks) - self._waiting(),
            waiting=self._waiting(),
            steps=0,
            step_tokens=0,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens + live,
        )

    # -- answers -------------------------------------------------------------------------------------------------------

    def _waiting(self) -> int:
        return sum(not one.completion_tokens for one in self._tasks)

    def _check_pack(self, pack: str | None) -> None:
        if pack is not None and pack not in self.folder.card.packs:
            raise UserError(f"{self.folder.path} has no adapter '{pack}'; {nearest(pack, self.folder.card.packs)}")

    async def _answer(
        self, generation: LiveGeneration, pack: str | None, speaker: VllmSpeaker, body: dict[str, Any]
    ) -> None:
        """Get an answer from one server after another, until one has begun to answer."""
        tried: list[Replica] = []
        restarted: list[Replica] = []
        busy: EngineBusy | None = None
        try:
            while not generation.done:
                replica = choose(self.replicas, pack, time.monotonic(), tried)
                if replica is None:
                    raise busy or UserError(f"no vLLM server answers: {self._reasons()}")
                tried.append(replica)
                replica.load += 1
                try:
                    await self._prepare(replica, pack)
                    replica.served.add(pack)
                    await self._stream(replica, generation, speaker, body)
                except EngineBusy as error:
                    busy = error
                except AdapterMissing as error:
                    # The server was started again, or it unloaded the adapter: it is prepared again, once.
                    replica.forget()
                    if replica in restarted:
                        replica.failed(str(error))
                    else:
                        restarted.append(replica)
                        tried.remove(replica)
                except ServerFailed as error:
                    replica.failed(str(error))
                    if generation.completion_tokens:
                        raise UserError(
                            f"the vLLM server failed while it wrote this answer, after {generation.completion_tokens} "
                            f"tokens: {error}. Send the request again"
                        ) from error
                finally:
                    replica.load -= 1
        except asyncio.CancelledError:
            raise
        except Exception as error:
            generation.settle(error=error)

    async def _stream(
        self, replica: Replica, generation: LiveGeneration, speaker: VllmSpeaker, body: dict[str, Any]
    ) -> None:
        pieces = stream(self._opened(), replica.url, body)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                for number, token in enumerate(piece.tokens, start=1):
                    if not generation.completion_tokens:
                        self._prompt_tokens += generation.prompt_tokens
                    last = piece.finish is not None and number == len(piece.tokens)
                    if token.id in speaker.stops:
                        generation.take(None, "answer")
                    else:
                        generation.take(token, "length" if last else None)
                if generation.done:
                    replica.worked()
                    return  # a stop string may end an answer before vLLM does: the connection is closed
                if piece.finish is not None:
                    # vLLM may end an answer in an event of its own, without a token.
                    generation.settle("length" if piece.finish == "length" else "answer")
                    replica.worked()
                    return

    def _settled(self, generation: LiveGeneration) -> None:
        task = self._tasks.pop(generation)
        self._completion_tokens += generation.completion_tokens
        if isinstance(generation.error, RequestCancelled):
            self._cancelled += 1
        elif generation.error is not None:
            self._failed += 1
        else:
            self._finished += 1
        if task is not asyncio.current_task():
            task.cancel()  # the connection is closed, and vLLM gives the request up

    # -- servers -------------------------------------------------------------------------------------------------------

    def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            raise RuntimeError("open the engine first: async with VllmEngine(folder, urls) as engine")
        return self._client

    def _reasons(self) -> str:
        return "; ".join(one.why or f"{one.url} has failed for this request" for one in self.replicas)

    def _readme(self) -> Path:
        return self.folder.path / "README.md"

    async def _prepare_at_start(self, replica: Replica) -> None:
        try:
            await self._prepare(replica, None)
            for pack in self.folder.card.packs:
                await self._prepare(replica, pack)
        except (ServerFailed, AdapterMissing, EngineBusy) as error:
            replica.failed(str(error))
            say_once(f"the vLLM server at {replica.url} is not ready and is tried again later: {error}")

    async def _prepare(self, replica: Replica, pack: str | None) -> None:
        """Make a server ready for a pack: check its model, load the adapter if it lacks it, and prove that it acts."""
        if replica.prepared and (pack is None or pack in replica.ready):
            return
        async with self._preparing[replica]:
            client, url = self._opened(), replica.url
            models = await call(client, "GET", url, "/v1/models")
            served = {str(one.get("id")): one for one in models.get("data", [])} if isinstance(models, dict) else {}
            if not replica.prepared:
                self._check_model(url, served)
                replica.prepared = True
            if pack is None or pack in replica.ready:
                return
            if pack not in served:
                await self._load(url, pack)
            await self._prove(url, pack)
            replica.ready.add(pack)

    def _check_model(self, url: str, served: dict[str, Any]) -> None:
        if BASE_NAME not in served:
            names = ", ".join(served) or "nothing"
            raise UserError(
                f"the vLLM server at {url} serves {names} and not '{BASE_NAME}': start it as {self._readme()} says"
            )
        limit = served[BASE_NAME].get("max_model_len")
        if isinstance(limit, int):
            self.context_length = min(self.context_length or limit, limit)

    async def _load(self, url: str, pack: str) -> None:
        body = {"lora_name": pack, "lora_path": str(self._adapters / pack)}
        try:
            await call(self._opened(), "POST", url, "/v1/load_lora_adapter", body)
        except (AdapterMissing, UserError) as error:
            raise UserError(
                f"the adapter '{pack}' cannot be loaded into the vLLM server at {url}: {error}. The server needs "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --max-lora-rank {self.folder.card.max_lora_rank}, and the folder "
                f"{self._adapters} (or say adapters_at); or start it as {self._readme()} says"
            ) from error

    async def _prove(self, url: str, pack: str) -> None:
        """Raise :class:`UserError` if the adapter gives the log-probabilities of the base."""
        ids = self._speakers.encode(PROBE, None)
        with_pack = await probe_logprobs(self._opened(), url, pack, ids)
        without = await probe_logprobs(self._opened(), url, BASE_NAME, ids)
        if (moved := distance(with_pack, without)) < LEAST:
            raise UserError(
                f"the adapter '{pack}' does not act in the vLLM server at {url}: along a probe text its "
                f"log-probabilities are those of the base ({moved:.1e} nats apart per token). Export the weave again, "
                f"and start the server as {self._readme()} says"
            )
