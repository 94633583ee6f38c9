"""Responses: OpenAI's newer route, for texts and calls of functions. Nothing is stored."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai.types.responses as types
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from skillweave.serve.errors import api_error
from skillweave.serve.openai.answers import AnswerPiece, Answers, ClientGone, Complete, answered
from skillweave.serve.openai.chat import arguments_of, chat_answers
from skillweave.serve.openai.event_stream import named_event
from skillweave.serve.openai.logprobs import chat_logprobs
from skillweave.serve.openai.parameters import read_request
from skillweave.serve.openai.requests import ResponsesRequest, Wanted
from skillweave.serve.openai.tools import read_choice, read_format, read_tools, tool_use
from skillweave.serve.service import Service
from skillweave.tools.call import Call


async def response(service: Service, request: Request) -> HttpResponse:
    """Answer a request for responses. Raises :class:`ApiError`, and the errors of the engine."""
    asked = await read_request(request, ResponsesRequest, "responses")
    wanted, messages = asked.wanted(service.limits), asked.conversation()
    schema = read_format(asked.format(), service.limits, "text.format", flat=True)
    tools = read_tools(asked.tools, service.limits, flat=True)
    choice = read_choice(asked.tool_choice)
    use = await asyncio.to_thread(
        tool_use, tools, choice, schema, parallel=asked.parallel_tool_calls, format_where="text.format"
    )
    answers = await chat_answers(service, request, asked.model, messages, use, wanted)
    writer = _Writer(answers, asked, wanted, tools)
    return await answered(answers, writer.stream() if asked.stream else None, writer.whole)


@dataclass
class _Writer:
    """Writes one response, or the events of its stream."""

    answers: Answers
    asked: ResponsesRequest
    wanted: Wanted
    tools: Sequence[dict[str, Any]]
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    message_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")
    created: float = field(default_factory=lambda: float(int(time.time())))
    sent: int = 0
    """events so far"""

    def response(
        self, items: Sequence[Any], complete: Complete | None, error: dict[str, str] | None = None
    ) -> types.Response:
        """Return the response with these items: complete, in progress (None), or failed."""
        status = "failed" if error else "in_progress"
        details = usage = None
        if complete is not None:
            status = "incomplete" if complete.reason == "length" else "completed"
            details = {"reason": "max_output_tokens"} if complete.reason == "length" else None
            usage = _usage(complete)
        asked = self.asked
        return types.Response.model_validate(
            {
                "id": self.id,
                "object": "response",
                "created_at": self.created,
                "status": status,
                "error": error,
                "incomplete_details": details,
                "instructions": asked.instructions,
                "metadata": asked.metadata or {},
                "model": asked.model,
                "output": [item.model_dump(exclude_unset=True) for item in items],
                "parallel_tool_calls": asked.parallel_tool_calls,
                "previous_response_id": None,
                "store": False,
                "temperature": asked.temperature,
                "top_p": asked.top_p,
                "max_output_tokens": self.wanted.sampling.max_new_tokens,
                "top_logprobs": asked.top_logprobs or 0,
                "text": {"format": asked.format() or {"type": "text"}},
                "tool_choice": asked.tool_choice or "auto",
                "tools": [{"type": "function", **tool["function"]} for tool in self.tools],
                "truncation": "disabled",
                "usage": usage,
                "user": asked.user,
                "skillweave": self.answers.told(),
            }
        )

    def whole(self, complete: Sequence[Complete]) -> str:
        """Return the response with its only answer, as JSON."""
        (one,) = complete
        return _json(self.response(self.items(one), one))

    def items(self, complete: Complete) -> list[Any]:
        """Return the items of a complete answer: its message, unless it is only calls, and its calls."""
        status = "incomplete" if complete.reason == "length" else "completed"
        calls = [self._call(call, f"fc_{secrets.token_hex(16)}", status) for call in complete.calls]
        if calls and not complete.text:
            return calls
        return [self._message(complete.text, status, complete), *calls]

    def _message(self, text: str, status: str, complete: Complete | None) -> types.ResponseOutputMessage:
        part = [] if complete is None else [self._part(text, self._logprobs(complete.reply.tokens))]
        return types.ResponseOutputMessage.model_validate(
            {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": part}
        )

    def _part(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}

    def _call(self, call: Call, id_: str, status: str, arguments: str | None = None) -> types.ResponseFunctionToolCall:
        return types.ResponseFunctionToolCall(
            id=id_,
            type="function_call",
            call_id=f"call_{id_.removeprefix('fc_')}",
            name=call.name,
            arguments=arguments_of(call) if arguments is None else arguments,
            status=status,
        )

    def _logprobs(self, tokens: Sequence[Any]) -> list[dict[str, Any]]:
        if not self.asked.with_logprobs:
            return []
        return [one.model_dump() for one in chat_logprobs(self.answers.tokenizer, tokens)]

    # -- the stream ----------------------------------------------------------------------------------------------------

    async def stream(self) -> AsyncIterator[str]:
        """Yield the events, in the order in which OpenAI sends them."""
        items: list[Any] = []
        begun = False
        try:
            yield self._event(types.ResponseCreatedEvent, response=self.response([], None))
            yield self._event(types.ResponseInProgressEvent, response=self.response([], None))
            async for event in self.answers.events():
                if isinstance(event, AnswerPiece):
                    if not begun and (event.text or self.asked.with_logprobs):
                        begun = True
                        for first in self._begin_message():
                            yield first
                    if begun and (event.text or event.tokens):
                        yield self._text(types.ResponseTextDeltaEvent, delta=event.text, tokens=event.tokens)
                    continue
                items = self.items(event)
                if begun and items[0].type != "message":  # its log-probabilities were told, but it has no text
                    items = [self._message("", items[0].status, event), *items]
                for last in self._end_items(items, event, begun=begun):
                    yield last
                kind = types.ResponseIncompleteEvent if event.reason == "length" else types.ResponseCompletedEvent
                yield self._event(kind, response=self.response(items, event))
        except ClientGone:
            return
        except Exception as error:
            told = api_error(error)
            failure = {"code": "server_error" if told.status >= 500 else "invalid_prompt", "message": told.message}
            yield self._event(types.ResponseFailedEvent, response=self.response(items, None, failure))

    def _begin_message(self) -> list[str]:
        message = self._message("", "in_progress", None)
        return [
            self._event(types.ResponseOutputItemAddedEvent, output_index=0, item=message),
            self._event(types.ResponseContentPartAddedEvent, **self._place(), part=self._part("")),
        ]

    def _end_items(self, items: Sequence[Any], complete: Complete, *, begun: bool) -> list[str]:
        events = []
        for index, item in enumerate(items):
            if item.type == "message":
                events += [] if begun else self._begin_message()
                text = item.content[0].text
                events += [
                    self._text(types.ResponseTextDoneEvent, text=text, tokens=complete.reply.tokens),
                    self._event(
                        types.ResponseContentPartDoneEvent,
                        **self._place(),
                        part=self._part(text, self._logprobs(complete.reply.tokens)),
                    ),
                ]
            else:
                place = {"item_id": item.id, "output_index": index}
                empty = item.model_copy(update={"arguments": "", "status": "in_progress"})
                events += [
                    self._event(types.ResponseOutputItemAddedEvent, output_index=index, item=empty),
                    self._event(types.ResponseFunctionCallArgumentsDeltaEvent, **place, delta=item.arguments),
                    self._event(
                        types.ResponseFunctionCallArgumentsDoneEvent, **place, name=item.name, arguments=item.arguments
                    ),
                ]
            events.append(self._event(types.ResponseOutputItemDoneEvent, output_index=index, item=item))
        return events

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _text(self, kind: type[BaseModel], *, tokens: Sequence[Any], **text: str) -> str:
        return self._event(kind, **self._place(), **text, logprobs=self._logprobs(tokens))

    def _event(self, kind: type[BaseModel], **values: Any) -> str:
        name = kind.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
        plain = {
            key: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            for key, value in values.items()
        }
        event = kind.model_validate({"type": name, "sequence_number": self.sent, **plain})
        self.sent += 1
        return named_event(name, _json(event))


def _usage(complete: Complete) -> dict[str, Any]:
    prompt, completion = complete.reply.prompt_tokens, complete.reply.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }


def _json(value: BaseModel) -> str:
    return value.model_dump_json(exclude_unset=True, by_alias=True, warnings=False)
