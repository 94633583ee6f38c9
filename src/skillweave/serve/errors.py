"""Errors of the API, in the shape in which OpenAI writes them: status, message, type, code and parameter."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from skillweave.base.template import TemplateError
from skillweave.engine.interface import EngineBusy, RequestCancelled
from skillweave.errors import UserError, nearest
from skillweave.serve.settings import PLAYGROUND
from skillweave.terminal import one_line

_INVALID = "invalid_request_error"
_LONGEST_REASON = 1000
_ROUTES = {
    404: "there is no such path: the API is below /v1, as in /v1/chat/completions, without a slash at the end",
    405: "this path takes other methods, which the header Allow names: questions are sent with POST",
}
"""What is said for a path or a method that no route has."""
_log = logging.getLogger("skillweave.serve")


class ApiError(Exception):
    """An answer with the status of an error.

    ``param`` is the parameter that is wrong; ``code`` is a short word that programs compare; ``headers`` are sent too.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = _INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """Return the error for a value that cannot be used: status 400."""
    return ApiError(400, message if param is None else f"{param}: {message}", code=code, param=param)


def unsupported(param: str, message: str) -> ApiError:
    """Return the error for a parameter of OpenAI's that is not honoured here: status 400."""
    return invalid(param, message, "unsupported_parameter")


def unknown_model(model: str, known: Collection[str]) -> ApiError:
    """Return the error for a model that the server does not have: status 404."""
    message = f"the model '{model[:200]}' does not exist; {nearest(model, known)}"
    return ApiError(404, message, code="model_not_found", param="model")


def too_long(prompt_tokens: int, context: int) -> ApiError:
    """Return the error for a prompt that leaves no room for an answer: status 400."""
    message = (
        f"the prompt has {prompt_tokens} tokens, and the model's context is {context}, answer included: shorten the "
        "prompt, or give fewer tools"
    )
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def too_many_messages(messages: int, context: int) -> ApiError:
    """Return the error for more messages than the context has tokens: status 400. Writing them all takes long."""
    message = f"there are {messages} messages, and the model's context is {context} tokens: send fewer"
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def pack_not_loaded(name: str, error: UserError) -> ApiError:
    """Return the error for a pack that the server cannot load: status 503, because the request may be right.

    The reason is logged. Clients are not told it, because it names files of the server.
    """
    _log.error("the pack %s cannot be loaded: %s", name, one_line(str(error), _LONGEST_REASON))
    message = f"the pack '{name}' cannot be loaded now: the server's log and GET /v1/packs say why"
    return ApiError(503, message, type="server_error", code="pack_not_loaded")


def api_error(error: BaseException) -> ApiError:
    """Return the error that a client is told.

    An unexpected one is logged with the places in the code where it arose, but without its message, which may hold
    what the client wrote.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusy):
        wait = max(1, math.ceil(error.retry_after)) if math.isfinite(error.retry_after) else 60
        return ApiError(
            429, str(error), type="rate_limit_error", code="engine_busy", headers={"retry-after": str(wait)}
        )
    if isinstance(error, RequestCancelled):
        return ApiError(
            503, "the answer was cancelled, because the server is stopping: ask again when it is back",
            type="server_error", code="stopping", headers={"retry-after": "5"},
        )  # fmt: skip
    if isinstance(error, TemplateError):
        return ApiError(400, error.public, code="invalid_request")
    if isinstance(error, UserError):
        return ApiError(400, str(error), code="invalid_request")
    if isinstance(error, ValidationError | RequestValidationError):
        return _not_valid(error)
    if isinstance(error, HTTPException):
        message = _ROUTES.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, code=_code(error.status_code), headers=error.headers)
    places = "".join(traceback.format_tb(error.__traceback__))
    _log.error("a request failed with %s:\n%s", type(error).__name__, places)
    return ApiError(500, "the server failed on this request: its log says where", type="server_error", code="internal")


def add_error_handlers(app: FastAPI) -> None:
    """Let an application answer all errors in OpenAI's shape."""
    for kind in (ApiError, EngineBusy, RequestCancelled, UserError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    told = _no_route(request, error) if isinstance(error, HTTPException) else api_error(error)
    return JSONResponse(told.body, told.status, headers=told.headers)


def _no_route(request: Request, error: HTTPException) -> ApiError:
    """Return the error for a path or a method that the server does not have, with what was probably meant."""
    told, path = api_error(error), request.url.path
    if error.status_code == 405:
        told.message = (
            f"{path!a:.200} does not take {request.method}: use {told.headers.get('Allow', 'another method')}"
        )
    elif error.status_code == 404 and f"{path}/".startswith(f"{PLAYGROUND}/"):
        told.message = "this server has no playground: start it with --ui"
    elif error.status_code == 404 and f"{path}/".startswith("/v1/packs/"):
        told.message = f"there is no {path!a:.200}: packs are managed only on a server with --allow-pack-management"
    elif error.status_code == 404:
        told.message = f"there is no {path!a:.200}: the API is below /v1, for example /v1/chat/completions"
    return told


def _not_valid(error: ValidationError | RequestValidationError) -> ApiError:
    """Return the error for the first value that a request model refuses."""
    first = error.errors()[0]
    places = first["loc"]
    if isinstance(error, RequestValidationError) and len(places) > 1:
        places = places[1:]  # the first says only that it is in the body, or in the path
    param = ".".join(str(part) for part in places if not _is_branch(part)) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        return invalid(param, "this parameter is required", "missing_required_parameter")
    return invalid(
        param, message[:1].lower() + message[1:], "invalid_type" if "type" in first["type"] else "invalid_value"
    )


def _is_branch(part: Any) -> bool:
    """Whether a part of a place names a branch of a union, as ``list[str]`` and ``constrained-str``."""
    return (isinstance(part, str) and not part.isidentifier()) or part in ("str", "int", "float", "bool")


def _code(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
