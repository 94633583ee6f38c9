"""Put the playground into the application of the server."""

from __future__ import annotations

import os

from fastapi import FastAPI
from starlette.middleware import Middleware

from skillweave.errors import UserError
from skillweave.serve.admission import Admission
from skillweave.serve.engine_service import EngineService
from skillweave.serve.playground.gate import PlaygroundGate
from skillweave.serve.settings import PLAYGROUND, ServeConfig


def mount_playground(
    app: FastAPI, service: EngineService, admission: Admission, settings: ServeConfig, key: str | None
) -> None:
    """Add the pages below :data:`PLAYGROUND`, before the application starts. They ask the service without HTTP.

    ``key``: what people must give to see the pages; None: everybody who reaches the server sees them. The guard for
    the key of the API must let the pages pass, because they have a login of their own. Raises :class:`UserError` if
    Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when Gradio is imported, and when pages are made
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the playground (--ui) needs Gradio, which cannot be imported ({error}): install it with "
            "pip install 'skillweave[ui]', or start the server without --ui"
        ) from error
    from skillweave.serve.playground.page import THEME, build_page, style

    page = build_page(service, admission, settings)
    gradio.mount_gradio_app(
        app, page, path=PLAYGROUND, theme=THEME, css=style(), footer_links=[], run_history=False, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False, allowed_paths=[], max_file_size=0, show_error=False,
        app_kwargs={
            "docs_url": None, "redoc_url": None, "openapi_url": None,
            "middleware": [Middleware(PlaygroundGate, key=key)],
        },
    )  # fmt: skip
