"""The gate of the playground: the login, the cookie, and the only paths that there are."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from skillweave.serve.playground.gate import PlaygroundGate, Sessions

KEY = "sw-0123456789abcdef"
PAGE = (
    b'<html><head><link rel="manifest" href="/manifest.json" /><meta\n property="og:url" content="https://a/" /></head>'
)


async def pages(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/html")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE})


def client_of(key: str | None) -> TestClient:
    app = FastAPI()
    app.mount("/ui", PlaygroundGate(pages, key))
    return TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)


def logged_in() -> TestClient:
    client = client_of(KEY)
    assert client.post("/ui/login", json={"key": KEY}).status_code == 200
    return client


def test_a_browser_without_the_key_sees_the_login_and_nothing_else() -> None:
    client = client_of(KEY)
    away = client.get("/ui/")
    assert (away.status_code, away.headers["location"]) == (303, "login")
    assert "This server needs its key" in client.get("/ui/login").text
    for path in ("/config", "/theme.css", "/assets/index.js", "/gradio_api/queue/data", "/gradio_api/file=/etc/passwd"):
        assert client.get(f"/ui{path}").status_code == 401
    assert client.post("/ui/gradio_api/queue/join", json={}).status_code == 401


@pytest.mark.parametrize("body", [{"key": KEY[:-1]}, {"key": KEY + "x"}, {"key": ""}, {"key": "ü"}])
def test_a_wrong_key_opens_nothing(body: Any) -> None:
    client = client_of(KEY)
    answer = client.post("/ui/login", json=body)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"key": 1}', b"\xff", b"[" * 10_000, b'"' + b"x" * 20_000])
def test_a_login_that_is_none_is_refused(body: bytes) -> None:
    answer = client_of(KEY).post("/ui/login", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)


def test_the_key_opens_the_pages_with_a_cookie_that_scripts_and_other_sites_cannot_use() -> None:
    client = client_of(KEY)
    cookie = client.post("/ui/login", json={"key": f" {KEY}\n"}).headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui"))
    assert KEY not in cookie
    assert client.get("/ui/").status_code == 200
    assert client.post("/ui/gradio_api/queue/join", json={}).status_code == 200


def test_forged_old_and_foreign_tickets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(KEY)
    ticket = sessions.ticket(KEY)
    assert ticket is not None
    assert sessions.valid(ticket)
    until, signature = ticket.split(".")
    assert not Sessions(KEY).valid(ticket)  # of another process
    for forged in ("", ".", until, f"{int(until) + 1}.{signature}", f"{until}.{signature[:-1]}", "x.y", f"{until}.ü"):
        assert not sessions.valid(forged)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert not sessions.valid(ticket)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/file=/etc/passwd"), ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.org/"), ("POST", "/gradio_api/upload"), ("GET", "/gradio_api/info"),
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/run/predict"), ("GET", "/monitoring"),
        ("POST", "/gradio_api/call/reply"), ("GET", "/gradio_api/openapi.json"), ("GET", "/gradio_api/token"),
        ("GET", "/login_check"), ("POST", "/gradio_api/vibe-edit"), ("GET", "/gradio_api/runs"), ("GET", "/pwa_icon"),
        ("PUT", "/"), ("DELETE", "/"), ("POST", "/"), ("OPTIONS", "/config"), ("GET", "/gradio_api/deep_link"),
    ],
)  # fmt: skip
def test_doors_that_the_pages_do_not_need_are_closed(method: str, path: str) -> None:
    for client in (client_of(None), logged_in()):
        assert client.request(method, f"/ui{path}").status_code == 404


def test_scripts_of_other_pages_are_refused() -> None:
    client = client_of(None)
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": "cors"}
        assert client.post("/ui/gradio_api/queue/join", json={}, headers=headers).status_code == 403
        assert client.get("/ui/config", headers=headers).status_code == 403
        assert client.get("/ui/", headers={**headers, "sec-fetch-mode": "navigate"}).status_code == 200  # a link
    assert client.get("/ui/config", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_the_page_names_no_other_site_and_may_load_from_none() -> None:
    answer = client_of(None).get("/ui/")
    assert "manifest" not in answer.text
    assert "https://" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
