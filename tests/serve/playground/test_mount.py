"""The playground in the application: behind the guards, with its own login, and only if Gradio is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from helpers.small_server import small_service
from skillweave.errors import UserError
from skillweave.serve.app import create_app
from skillweave.serve.settings import ServeConfig

KEY = "sw-0123456789abcdef"


@contextmanager
def client_of(key: str | None = None, lines: list[str] | None = None) -> Iterator[TestClient]:
    pytest.importorskip("gradio", reason="the extra `ui` is not installed")
    write = (lines if lines is not None else []).append
    app = create_app(small_service(), ServeConfig(ui=True), key, write_log=write)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


def test_without_gradio_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'skillweave\[ui\]'"):
        create_app(small_service(), ServeConfig(ui=True), None)


def test_there_is_no_playground_unless_it_is_asked_for() -> None:
    with TestClient(create_app(small_service(), ServeConfig(), None), base_url="http://127.0.0.1") as client:
        assert client.get("/ui/").status_code == 404


def test_the_pages_are_there_without_a_word_about_other_sites() -> None:
    with client_of() as client:
        page = client.get("/ui/")
        assert page.status_code == 200
        assert "SkillWeave" in page.text
        assert "https://" not in page.text
        assert client.get("/ui/theme.css").status_code == 200
        config = client.get("/ui/config").json()
        assert config["analytics_enabled"] is False
        assert client.get("/ui/gradio_api/file=/etc/passwd").status_code == 404
        assert client.get("/ui/", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/v1/models").status_code == 200


def test_with_a_key_the_pages_have_a_login_and_the_api_has_its_key() -> None:
    with client_of(KEY) as client:
        assert client.get("/ui/").status_code == 303
        assert client.get("/uix").status_code == 401
        assert client.post("/ui/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/ui/login", json={"key": "wrong"}).status_code == 401
        assert client.post("/ui/login", json={"key": KEY}).status_code == 200
        assert client.get("/ui/").status_code == 200
        assert client.get("/v1/models").status_code == 401  # the cookie is for the pages alone


def test_the_log_has_only_refused_requests_of_the_pages() -> None:
    lines: list[str] = []
    with client_of(lines=lines) as client:
        client.get("/ui/theme.css")
        client.get("/ui/gradio_api/file=/etc/passwd")
    assert len(lines) == 1
    assert "passwd" in lines[0]
