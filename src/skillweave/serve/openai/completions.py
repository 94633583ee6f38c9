"""Completions of texts: the whole response, or its stream of chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from openai.types import Completion
from starlette.requests import Request
from starlette.responses import Response

from skillweave.base.chat import plain_ids
from skillweave.serve.errors import api_error, invalid
from skillweave.serve.openai.answers import AnswerPiece, Answers, ClientGone, Complete, answered
from skillweave.serve.openai.chat import is_auto, new_response, usage_of
from skillweave.serve.openai.event_stream import DONE, data_event
from skillweave.serve.openai.logprobs import completion_logprobs, token_length
from skillweave.serve.openai.parameters import read_request
from skillweave.serve.openai.prompts import fitting
from skillweave.serve.openai.requests import CompletionRequest, Wanted
from skillweave.serve.openai.tools import WantedTools
from skillweave.serve.service import Service


async def completion(service: Service, request: Request) -> Response:
    """Answer a request for completions. Raises :class:`ApiError`, and the errors of the engine."""
    asked = await read_request(request, CompletionRequest, "completions")
    wanted, prompts = asked.wanted(service.limits), asked.prompts(service.limits)
    if len(prompts) > 1 and is_auto(asked.model, service.models()):
        raise invalid("prompt", "the router chooses for one prompt: send one request for each, or name a model")
    resolved = await service.resolve(asked.model, prompts[0])
    answers = Answers(service, request, asked.model, resolved, WantedTools())
    try:
        await answers.hold()
        ids = await asyncio.to_thread(_all_ids, answers.tokenizer, prompts, service.engine.context_length)
        await answers.submit(ids, wanted)
    except BaseException:
        await answers.close()
        raise
    base = new_response("cmpl", service, asked.model)

    def whole(complete: list[Complete]) -> str:
        choices = []
        for one in complete:
            tokens = None
            if wanted.logprobs is not None:
                tokens = completion_logprobs(answers.tokenizer, one.reply.tokens, 0)
            choices.append(_choice(one.index, one.text, tokens, one.reason))
        values = {
            **base,
            "object": "text_completion",
            "choices": choices,
            "usage": usage_of(complete, wanted.n),
            "skillweave": answers.told(),
        }
        return Completion.model_validate(values).model_dump_json(exclude_unset=True)

    events = _stream(answers, base, wanted, asked.stream_options.include_usage) if asked.stream else None
    return await answered(answers, events, whole)


def _all_ids(tokenizer: Any, prompts: list[str | list[int]], context: int | None) -> list[list[int]]:
    """Return the token ids of prompts. Texts are continued as they are; no chat template is used."""
    every = [plain_ids(tokenizer, one) if isinstance(one, str) else one for one in prompts]
    for at, ids in enumerate(every):
        if not ids:
            where = "prompt" if len(every) == 1 else f"prompt.{at}"
            raise invalid(where, "it is empty, and this model has no token that begins a text: give it a text")
    return [fitting(ids, context) for ids in every]


async def _stream(answers: Answers, base: dict[str, Any], wanted: Wanted, with_usage: bool) -> AsyncIterator[str]:
    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if with_usage else {}
        values = {**base, "object": "text_completion", "choices": choices, **usage, **more}
        # In a stream the finish_reason is null until the end, which the type for whole responses does not know.
        return data_event(Completion.construct(**values).model_dump_json(exclude_unset=True, warnings=False))

    complete: list[Complete] = []
    told = {"skillweave": answers.told()}
    first = dict(told)
    offsets: dict[int, int] = {}
    try:
        async for event in answers.events():
            if isinstance(event, AnswerPiece):
                tokens = None
                if wanted.logprobs is not None:
                    tokens = completion_logprobs(answers.tokenizer, event.tokens, offsets.get(event.index, 0))
                    offsets[event.index] = offsets.get(event.index, 0) + token_length(answers.tokenizer, event.tokens)
                if event.text or tokens is not None:
                    yield chunk([_choice(event.index, event.text, tokens, None)], **first)
                    first = {}
                continue
            complete.append(event)
            yield chunk([_choice(event.index, "", None, event.reason)], **(first if with_usage else told))
            first = {}
        if with_usage:
            yield chunk([], usage=usage_of(complete, wanted.n), **told)
        yield DONE
    except ClientGone:
        return
    except Exception as error:
        yield data_event(json.dumps(api_error(error).body))


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
