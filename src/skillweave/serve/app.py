"""The application: the API of OpenAI with its guards, the state of the process, metrics and the management of packs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter, FastAPI, Response
from starlette.middleware.cors import CORSMiddleware

from skillweave import __version__
from skillweave.serve.admission import Admission, AdmissionGuard
from skillweave.serve.engine_service import EngineService
from skillweave.serve.errors import add_error_handlers
from skillweave.serve.logs import LogForm, RequestLog, StderrLog
from skillweave.serve.metrics import ServerMetrics
from skillweave.serve.openai.routes import openai_router
from skillweave.serve.pack_routes import pack_router
from skillweave.serve.playground.mount import mount_playground
from skillweave.serve.security import BodyGuard, HostGuard, KeyGuard
from skillweave.serve.settings import PLAYGROUND, ServeConfig

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUICK = 0.5
"""Seconds for which the start waits for the engine, so that a quick one is open when the first request comes."""


def create_app(
    service: EngineService,
    settings: ServeConfig,
    key: str | None,
    *,
    log_form: LogForm = "json",
    write_log: Callable[[str], None] | None = None,
) -> FastAPI:
    """Return the application. It opens the engine of the service when it starts, and closes it when it ends.

    - ``key``: what clients must send; None: everybody who reaches the server may ask it
    - ``write_log``: takes each line of the log; without it, they go to standard error

    ``app.state.admission`` is its :class:`~skillweave.serve.admission.Admission`, and ``app.state.settings`` its
    settings. There are no pages of documentation, because they load scripts from the internet.
    """
    admission = Admission(settings.max_streams)
    app = FastAPI(
        title="SkillWeave", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,  # behind a proxy with TLS, a redirect would send the key over plain HTTP
        lifespan=lambda _: _engine_open(service, admission),
    )  # fmt: skip
    app.state.admission, app.state.settings = admission, settings
    app.include_router(_process_routes(admission, service.metrics))
    app.include_router(openai_router(service))
    add_error_handlers(app)
    if settings.allow_pack_management and key is not None:
        app.include_router(pack_router(service))
    if settings.ui:
        mount_playground(app, service, admission, settings, key)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyGuard, largest=settings.max_body, seconds=settings.body_seconds)
    app.add_middleware(AdmissionGuard, admission=admission, stalled=settings.stalled_seconds)
    if key is not None:
        app.add_middleware(KeyGuard, key=key, pages=PLAYGROUND if settings.ui else None)
    else:
        app.add_middleware(HostGuard, host=settings.host)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    app.add_middleware(
        RequestLog, write=write_log or StderrLog(log_form), form=log_form, prompts=settings.log_prompts,
        count=service.metrics.responded,
    )  # fmt: skip
    return app


@contextlib.asynccontextmanager
async def _engine_open(service: EngineService, admission: Admission) -> AsyncIterator[None]:
    """Keep the engine open; it opens while the server answers already, so that `/health` and `/ready` can tell."""
    closing = asyncio.Event()

    async def keep_open() -> None:
        try:
            async with service.engine:
                await service.prepare()
                admission.open()
                await closing.wait()
        except Exception as error:
            admission.fail(error)

    keeper = asyncio.create_task(keep_open())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(admission.settled.wait(), _QUICK)
    try:
        yield
    finally:
        await admission.drain(0)
        closing.set()
        if admission.settled.is_set():
            await keeper
        else:  # the engine is still being opened
            keeper.cancel()
            await asyncio.wait({keeper})


def _process_routes(admission: Admission, metrics: ServerMetrics) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process lives."""
        return {"status": "alive"}

    @router.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Tell whether requests are taken: 200 if they are, 503 while the server starts or stops."""
        response.status_code = 200 if admission.state == "open" else 503
        return {"status": admission.state}

    @router.get("/metrics")
    async def figures() -> Response:
        """Return the metrics for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    return router
