"""Chat completions: the whole response, or its stream of chunks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.requests import Request
from starlette.responses import Response

from skillweave.base.chat import Prompt
from skillweave.serve.errors import api_error, too_many_messages
from skillweave.serve.openai.answers import AnswerPiece, Answers, ClientGone, Complete, answered
from skillweave.serve.openai.event_stream import DONE, data_event
from skillweave.serve.openai.logprobs import chat_logprobs
from skillweave.serve.openai.parameters import read_request
from skillweave.serve.openai.prompts import chat_ids, with_tools
from skillweave.serve.openai.requests import ChatRequest, Wanted
from skillweave.serve.openai.tools import WantedTools, read_choice, read_format, read_tools, tool_use
from skillweave.serve.service import ModelInfo, Service
from skillweave.tools.call import Call


async def chat_completion(service: Service, request: Request) -> Response:
    """Answer a request for chat completions. Raises :class:`ApiError`, and the errors of the engine."""
    asked = await read_request(request, ChatRequest, "chat")
    wanted, messages = asked.wanted(service.limits), asked.conversation()
    schema = read_format(asked.response_format, service.limits, "response_format")
    tools = read_tools(asked.tools, service.limits)
    choice = read_choice(asked.tool_choice)
    use = await asyncio.to_thread(tool_use, tools, choice, schema, parallel=asked.parallel_tool_calls)
    answers = await chat_answers(service, request, asked.model, messages, use, wanted)
    base = new_response("chatcmpl", service, asked.model)

    def whole(complete: list[Complete]) -> str:
        values = {
            **base,
            "object": "chat.completion",
            "choices": [_choice(answers, one, wanted) for one in complete],
            "usage": usage_of(complete, wanted.n),
            "skillweave": answers.told(),
        }
        return ChatCompletion.model_validate(values).model_dump_json(exclude_unset=True)

    events = _stream(answers, base, wanted, asked.stream_options.include_usage) if asked.stream else None
    return await answered(answers, events, whole)


def new_response(kind: str, service: Service, model: str) -> dict[str, Any]:
    """Return what a response, or each chunk of its stream, begins with. Its id begins with ``kind``."""
    return {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": service.fingerprint,
    }


async def chat_answers(
    service: Service,
    request: Request,
    model: str,
    messages: Sequence[dict[str, Any]],
    use: WantedTools,
    wanted: Wanted,
) -> Answers:
    """Return the answers to a conversation, submitted and open: they must be closed. Raises what submitting raises."""
    engine = service.engine
    if engine.context_length is not None and len(messages) > engine.context_length:
        raise too_many_messages(len(messages), engine.context_length)
    prompt: Prompt = list(messages)
    if is_auto(model, service.models()):  # the router reads the prompt as the base does
        prompt = await asyncio.to_thread(with_tools, engine.tokenizer(None), messages, use.described)
    resolved = await service.resolve(model, prompt)
    answers = Answers(service, request, model, resolved, use)
    try:
        await answers.hold()
        ids = await asyncio.to_thread(chat_ids, answers.tokenizer, messages, use.described, engine.context_length)
        await answers.submit([ids], wanted)
    except BaseException:
        await answers.close()
        raise
    return answers


def is_auto(model: str, models: Sequence[ModelInfo]) -> bool:
    """Return whether the router chooses for a request of this model."""
    return any(one.id == model and one.kind == "auto" for one in models)


def usage_of(complete: Sequence[Complete], n: int) -> CompletionUsage:
    """Return the tokens of some answers; a prompt is counted once for its ``n`` answers."""
    prompt = sum(one.reply.prompt_tokens for one in complete if one.index % n == 0)
    completion = sum(one.reply.completion_tokens for one in complete)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def calls_of(calls: Sequence[Call], *, indexed: bool) -> list[dict[str, Any]]:
    """Return calls as chat completions show them, each with a new id."""
    return [
        {
            **({"index": at} if indexed else {}),
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments_of(call)},
        }
        for at, call in enumerate(calls)
    ]


def arguments_of(call: Call) -> str:
    """Return the arguments of a call as a JSON text."""
    return json.dumps(dict(call.arguments), ensure_ascii=False)


def _choice(answers: Answers, one: Complete, wanted: Wanted) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None}
    if one.calls:
        message |= {"content": one.text or None, "tool_calls": calls_of(one.calls, indexed=False)}
    tokens = None
    if wanted.logprobs is not None:
        tokens = {"content": chat_logprobs(answers.tokenizer, one.reply.tokens), "refusal": None}
    return {"index": one.index, "message": message, "logprobs": tokens, "finish_reason": one.reason}


async def _stream(answers: Answers, base: dict[str, Any], wanted: Wanted, with_usage: bool) -> AsyncIterator[str]:
    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if with_usage else {}
        values = {**base, "object": "chat.completion.chunk", "choices": choices, **usage, **more}
        return data_event(ChatCompletionChunk.model_validate(values).model_dump_json(exclude_unset=True))

    def choice(index: int, delta: dict[str, Any], reason: str | None = None, tokens: Any = None) -> dict[str, Any]:
        logprobs = None if tokens is None else {"content": tokens, "refusal": None}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    complete: list[Complete] = []
    told = {"skillweave": answers.told()}
    try:
        for index in range(wanted.n):
            yield chunk([choice(index, {"role": "assistant", "content": "", "refusal": None})], **told)
        async for event in answers.events():
            if isinstance(event, AnswerPiece):
                tokens = None
                if wanted.logprobs is not None:
                    tokens = chat_logprobs(answers.tokenizer, event.tokens)
                if event.text or tokens:
                    yield chunk([choice(event.index, {"content": event.text}, tokens=tokens)])
                continue
            complete.append(event)
            if event.calls:
                yield chunk([choice(event.index, {"tool_calls": calls_of(event.calls, indexed=True)})])
            yield chunk([choice(event.index, {}, event.reason)], **({} if with_usage else told))
        if with_usage:
            yield chunk([], usage=usage_of(complete, wanted.n), **told)
        yield DONE
    except ClientGone:
        return
    except Exception as error:
        yield data_event(json.dumps(api_error(error).body))
