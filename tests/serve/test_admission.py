"""Requests that are no answers: a page that stays open does not delay the end of the server, and is closed in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from skillweave.serve import admission as module
from skillweave.serve.admission import Admission, AdmissionGuard

PAGE = {"type": "http", "method": "GET", "path": "/ui/heartbeat"}


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def opened() -> Admission:
    admission = Admission(4)
    admission.open()
    return admission


async def closed(admission: Admission, begins: bool) -> list[Any]:
    """What a client gets of a page that never ends by itself."""
    sent: list[Any] = []

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    request = asyncio.create_task(AdmissionGuard(page, admission, 60)(PAGE, never, send))
    await asyncio.sleep(0.01)
    assert len(admission.pages) == 1
    assert await admission.drain(10) == 0
    await admission.close_pages()
    await request
    assert admission.pages == set()
    return sent


@pytest.mark.parametrize("begins", [True, False])
def test_an_open_page_ends_with_the_server(monkeypatch: pytest.MonkeyPatch, begins: bool) -> None:
    monkeypatch.setattr(module, "_LAST_WORDS", 0.05)
    sent = asyncio.run(asyncio.wait_for(closed(opened(), begins), 10))
    assert sent[0]["status"] == (200 if begins else 503)
    assert not sent[-1].get("more_body", False)


def test_a_page_that_is_told_the_end_of_its_answer_is_not_cut() -> None:
    async def work() -> list[Any]:
        admission, sent = opened(), []

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": b"the end"})

        async def send(message: Message) -> None:
            sent.append(message)

        request = asyncio.create_task(AdmissionGuard(page, admission, 60)(PAGE, never, send))
        await asyncio.sleep(0.01)
        await admission.drain(0)
        await admission.close_pages()
        await request
        return sent

    assert asyncio.run(asyncio.wait_for(work(), 10))[-1]["body"] == b"the end"
