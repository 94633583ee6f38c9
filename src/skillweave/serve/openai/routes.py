"""The routes that OpenAI clients speak."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from openai.types import Model
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from skillweave.serve.errors import api_error, unknown_model
from skillweave.serve.openai.answers import ClientGone
from skillweave.serve.openai.chat import chat_completion
from skillweave.serve.openai.completions import completion
from skillweave.serve.openai.responses import response
from skillweave.serve.service import ModelInfo, Service

_CLIENT_GONE = 499
"""The status that logs show for a client that left before its answer was there; nobody receives it."""


def openai_router(service: Service) -> APIRouter:
    """Return the routes under ``/v1``. They answer their errors themselves, in OpenAI's shape."""
    router = APIRouter(prefix="/v1")

    def post(path: str, answer: Callable[[Service, Request], Awaitable[Response]]) -> None:
        async def route(request: Request) -> Response:
            try:
                return await answer(service, request)
            except ClientGone:
                return Response(status_code=_CLIENT_GONE)
            except Exception as error:
                return error_response(error)

        router.add_api_route(path, route, methods=["POST"], include_in_schema=False, response_model=None)

    @router.get("/models", response_model=None)
    async def models() -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [_model(one) for one in service.models()]})

    @router.get("/models/{name:path}", response_model=None)
    async def model(name: str) -> Response:
        """Describe one model."""
        known = {one.id: one for one in service.models()}
        if name not in known:
            return error_response(unknown_model(name, known))
        return JSONResponse(_model(known[name]))

    post("/chat/completions", chat_completion)
    post("/completions", completion)
    post("/responses", response)
    return router


def error_response(error: BaseException) -> JSONResponse:
    """Return the response for an error; an unexpected one is logged."""
    told = api_error(error)
    return JSONResponse(told.body, told.status, headers=told.headers)


def _model(model: ModelInfo) -> dict[str, object]:
    known = Model(id=model.id, object="model", created=model.created, owned_by="skillweave")
    return {**known.model_dump(exclude_unset=True), "parent": model.parent, "kind": model.kind}
