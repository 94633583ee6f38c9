"""Open the models of a run from what the user names: URLs of servers, or artefacts for the engine in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from skillweave.engine import AsyncEngine, open_engine
from skillweave.errors import UserError
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.local import LocalModel, local_identity
from skillweave.reason.models.openai_model import OpenAIModel


@dataclass(frozen=True)
class ModelRef:
    """A model as a user names it: ``URL#NAME`` for a server, ``ARTEFACT`` or ``ARTEFACT#PACK`` for the local engine."""

    target: str
    name: str | None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read ``TARGET#NAME``. Raises :class:`UserError` for a URL without the name of a model."""
        target, mark, name = text.partition("#")
        if not target or (mark and not name):
            raise UserError(f"--model {text}: write URL#NAME, ARTEFACT or ARTEFACT#PACK")
        ref = cls(target, name or None)
        if ref.is_url and ref.name is None:
            raise UserError(f"--model {text}: name the model that the server is to use: {text.rstrip('/')}#NAME")
        return ref

    @property
    def is_url(self) -> bool:
        """Whether the model is behind a server."""
        return self.target.startswith(("http://", "https://"))


@dataclass(frozen=True)
class OpenOptions:
    """How models are opened.

    - ``concurrency``, ``timeout`` (seconds), ``retries``: of requests to a server
    - ``base``, ``dtype``, ``device``, ``batch_size``: of the local engine
    """

    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 5
    base: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 32


@dataclass(frozen=True)
class OpenedModels:
    """The opened models by reference, and the local engines with their targets."""

    by_ref: Mapping[ModelRef, CachedModel]
    engines: Mapping[str, AsyncEngine]


@asynccontextmanager
async def open_models(refs: set[ModelRef], cache: AnswerCache, options: OpenOptions) -> AsyncIterator[OpenedModels]:
    """Open each model once, all behind one cache; a target with several packs is one engine.

    Raises :class:`UserError` if a server cannot be reached or does not know the model, and for an artefact that cannot
    be opened.
    """
    async with AsyncExitStack() as stack:
        models: dict[ModelRef, CachedModel] = {}
        engines: dict[str, AsyncEngine] = {}
        for ref in sorted(refs, key=lambda one: (one.target, one.name or "")):
            if ref.is_url:
                assert ref.name is not None
                server = OpenAIModel(
                    ref.target,
                    ref.name,
                    concurrency=options.concurrency,
                    timeout=options.timeout,
                    retries=options.retries,
                )
                stack.push_async_callback(server.close)
                await server.check()
                models[ref] = CachedModel(server, cache)
                continue
            if ref.target not in engines:
                opened = open_engine(ref.target, base=options.base, dtype=options.dtype, device=options.device)
                engine = AsyncEngine(opened.weave, max_requests=options.batch_size)
                engines[ref.target] = await stack.enter_async_context(engine)
                defaults = opened
            pack = defaults.pack_named(ref.name)
            identity = local_identity(engines[ref.target].weave, pack)
            models[ref] = CachedModel(LocalModel(engines[ref.target], pack, identity=identity), cache)
        yield OpenedModels(models, engines)
