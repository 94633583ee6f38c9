"""Put the playground into the application of the server, below ``/ui``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware

from skillweave.errors import UserError
from skillweave.serve.playground.drawing import PackLine
from skillweave.serve.playground.figures import LiveFigures
from skillweave.serve.playground.gate import PlaygroundGate
from skillweave.serve.service import Service

PATH = "/ui"


def mount_playground(
    app: FastAPI,
    service: Service,
    *,
    status: Callable[[], Sequence[PackLine]],
    registry: CollectorRegistry,
    key: str | None,
    budget: int | None = None,
    max_streams: int = 256,
) -> None:
    """Add the pages to an application that has not started yet. They ask the service in this process, without HTTP.

    - ``status``: returns each pack with its place in memory; ``budget``: the most bytes of packs there
    - ``registry``: the metrics of the server
    - ``key``: what people must give to see the pages; None: everybody who reaches the server sees them. A guard for
      the key of the API must let the paths below :data:`PATH` pass, because the pages have a login of their own
    - ``max_streams``: answers that the pages have at once; further ones wait

    Raises :class:`UserError` if Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported, and when pages are made
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the playground (--ui) needs Gradio, which cannot be imported ({error}): install it with "
            "pip install 'skillweave[ui]', or start the server without --ui"
        ) from error
    from skillweave.serve.playground.page import THEME, build_page, style

    page = build_page(
        service, LiveFigures(service.engine.counters, registry), status, budget=budget, max_streams=max_streams
    )
    gradio.mount_gradio_app(
        app, page, path=PATH, theme=THEME, css=style(), footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, allowed_paths=[], max_file_size=0, show_error=False,
        app_kwargs={
            "docs_url": None, "redoc_url": None, "openapi_url": None,
            "middleware": [Middleware(PlaygroundGate, key=key)],
        },
    )  # fmt: skip
