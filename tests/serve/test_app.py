"""The application: its guards in their order, the state of the process, metrics of each pack, the log, pack routes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from helpers.small_server import SmallEngine, small_service
from skillweave.errors import UserError
from skillweave.files.parse_json import parse_json
from skillweave.serve import body
from skillweave.serve.app import create_app
from skillweave.serve.logs import LogForm
from skillweave.serve.settings import ServeConfig

KEY = "sw-0123456789abcdef"
SECRET = "my secret prompt"


def client_of(
    engine: SmallEngine | None = None, key: str | None = None, lines: list[str] | None = None,
    form: LogForm = "json", **settings: Any,
) -> TestClient:  # fmt: skip
    service = small_service(engine)
    write = (lines if lines is not None else []).append
    app = create_app(service, ServeConfig(**settings), key, log_form=form, write_log=write)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as opened:
        yield opened


def ask(client: TestClient, model: str = "auto", text: str = "sort 3 1 2", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return client.post("/v1/chat/completions", json=body)


def series(client: TestClient) -> dict[tuple[str, ...], float]:
    """(name, the pack, other labels) -> value."""
    text = client.get("/metrics").text
    return {
        (
            sample.name,
            *(sample.labels[name] for name in sorted(sample.labels, key=lambda name: name != "pack")),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# -- the state of the process ------------------------------------------------------------------------------------------


def test_it_is_ready_while_the_engine_is_open() -> None:
    engine = SmallEngine()
    with client_of(engine) as client:
        assert engine.is_open
        assert (client.get("/health").status_code, client.get("/ready").json()) == (200, {"status": "open"})
        assert ask(client).status_code == 200
    assert not engine.is_open


def test_while_the_engine_opens_it_lives_but_is_not_ready() -> None:
    with client_of(SmallEngine(opening=1.0)) as client:
        assert client.get("/health").status_code == 200
        assert (client.get("/ready").status_code, client.get("/ready").json()) == (503, {"status": "starting"})
        refused = ask(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starting")
        assert int(refused.headers["retry-after"]) > 0
        until = time.monotonic() + 10
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ask(client).status_code == 200


def test_an_engine_that_does_not_open_leaves_the_server_not_ready() -> None:
    with client_of(SmallEngine(opening=UserError("no memory"))) as client:
        assert client.get("/ready").status_code == 503
        assert ask(client).status_code == 503
        assert str(client.app.state.admission.failure) == "no memory"  # type: ignore[attr-defined]


def test_there_are_no_pages_that_load_scripts_from_elsewhere(client: TestClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/v1/packs", "/shutdown"):
        assert client.get(path).status_code == 404


# -- the guards --------------------------------------------------------------------------------------------------------


def test_the_guards_stand_before_the_api() -> None:
    with client_of(key=KEY) as client:
        assert ask(client).status_code == 200
        assert client.post("/v1/chat/completions", json={}, headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
        assert client.get("/health", headers={"Authorization": "", "Host": "evil.example"}).status_code == 200
        assert (
            client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}).status_code
            == 400
        )
    with client_of(max_body=200) as client:
        assert ask(client, text="x" * 200).status_code == 413
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_without_origins_no_other_page_is_allowed(client: TestClient) -> None:
    preflight = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    refused = client.options("/v1/chat/completions", headers=preflight)
    assert "access-control-allow-origin" not in refused.headers
    with client_of(key=KEY, cors_origins=("https://chat.example.org",)) as open_one:
        allowed = open_one.options("/v1/chat/completions", headers={**preflight, "Authorization": ""})
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.org"
        other = open_one.options("/v1/chat/completions", headers={**preflight, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_path_that_is_almost_right_is_not_redirected_but_told(client: TestClient) -> None:
    for path in ("/v1/chat/completions/", "/health/", "//v1/models"):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 404
        assert "/v1/chat/completions" in answer.json()["error"]["message"]
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "POST" in wrong.json()["error"]["message"]


def test_a_body_is_parsed_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(body, "parse_json", lambda *given, **options: parsed.append(1) or parse_json(*given, **options))
    assert ask(client).status_code == 200
    assert len(parsed) == 1


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_every_pack_has_its_series() -> None:
    with client_of() as client:
        for model, text in (("auto", "sort 1"), ("auto", "hello"), ("reverse", "a"), ("base", "b"), ("reverse", "c")):
            assert ask(client, model, text).status_code == 200
        found = series(client)
    assert found["skillweave_requests_total", "sort", "stop"] == 1
    assert found["skillweave_requests_total", "reverse", "stop"] == 2
    assert found["skillweave_requests_total", "base", "stop"] == 2
    assert found["skillweave_prompt_tokens_total", "reverse"] == 8  # <user> a <end> <assistant>, twice
    assert found["skillweave_completion_tokens_total", "reverse"] == 8
    assert found["skillweave_first_token_seconds_count", "reverse"] == 2
    assert found["skillweave_token_seconds_count", "sort"] == 2
    assert found["skillweave_routes_total", "sort"] == 1
    assert found[("skillweave_route_abstentions_total",)] == 1
    assert found["skillweave_pack_loads_total", "reverse"] == 1
    assert found["skillweave_pack_hits_total", "reverse"] == 1
    assert found["skillweave_pack_load_seconds", "reverse"] == 0.5
    assert found["skillweave_pack_resident_bytes", "sort"] == 1000
    assert found["skillweave_pack_level", "sort", "memory"] == 1
    assert found["skillweave_http_responses_total", "200"] == 5
    assert found[("skillweave_requests_running",)] == found[("skillweave_requests_waiting",)] == 0


def test_a_client_cannot_create_series() -> None:
    with client_of() as client:
        ask(client, "sort")
        client.get("/nowhere")
        ask(client, "nobody")
        before = set(series(client))
        for number in range(50):
            assert ask(client, f"model-{number}").status_code == 404
            client.get(f"/v1/models/model-{number}")
        assert set(series(client)) == before


def test_a_failure_is_counted() -> None:
    engine = SmallEngine()
    engine.breaks = RuntimeError("the model has failed")
    with client_of(engine) as client:
        assert ask(client, "sort").status_code == 500
        assert series(client)["skillweave_requests_total", "sort", "failed"] == 1


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_line_tells_a_request_without_what_was_asked() -> None:
    lines: list[str] = []
    with client_of(key=KEY, lines=lines) as client:
        response = ask(client, text=f"sort: {SECRET}")
        client.get("/health")
        ask(client, "sort", text=SECRET, stream=True)
    first, second = map(json.loads, lines)
    assert first["id"] == response.headers["x-request-id"]
    assert (first["request"], first["status"], first["model"]) == ("POST /v1/chat/completions", 200, "auto")
    assert (first["pack"], first["confidence"], first["ended"]) == ("sort", 0.97, "stop")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (25, 4)
    assert second["pack"] == "sort"
    assert "confidence" not in second
    assert 0 <= first["first_token_seconds"] <= first["seconds"] < 60
    assert SECRET not in "".join(lines)
    assert KEY not in "".join(lines)


def test_prompts_are_logged_when_wanted() -> None:
    lines: list[str] = []
    with client_of(lines=lines, log_prompts=True) as client:
        ask(client, text=SECRET)
    assert json.loads(lines[0])["asked"] == [{"role": "user", "content": SECRET}]


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_client_can_forge_a_line(form: LogForm) -> None:
    lines: list[str] = []
    forged = 'x\n{"status": 200}\r\x1b[2K id=req-1 status=200 \u2028 "'
    with client_of(lines=lines, form=form, log_prompts=True) as client:
        ask(client, forged, text=forged)
        client.get("/a%0Astatus=200%1b[2K")
    assert len(lines) == 2
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        if form == "text":
            outside = "".join(line.split('"')[::2]) if "\\" not in line else line.partition('"')[0]
            assert outside.count("status=") <= 1
        else:
            assert json.loads(line)["status"] == 404


def test_what_is_refused_is_logged_too() -> None:
    lines: list[str] = []
    with client_of(key=KEY, lines=lines) as client:
        client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}x"})
    assert json.loads(lines[0])["status"] == 401
    assert KEY not in lines[0]


# -- packs -------------------------------------------------------------------------------------------------------------


def test_packs_are_managed_only_with_a_key() -> None:
    with client_of(allow_pack_management=True) as client:
        assert client.get("/v1/packs").status_code == 404
    with client_of(key=KEY, allow_pack_management=True) as client:
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/sort"), ("POST", "/sort/pin")):
            assert client.request(method, f"/v1/packs{path}", headers={"Authorization": ""}).status_code == 401


def test_packs_are_listed_added_pinned_loaded_and_removed() -> None:
    with client_of(key=KEY, allow_pack_management=True) as client:
        assert [pack["name"] for pack in client.get("/v1/packs").json()["data"]] == ["sort", "reverse"]
        added = client.post("/v1/packs", json={"folder": "packs/new"})
        assert (added.status_code, added.json()["name"]) == (201, "new")
        assert client.post("/v1/packs/new/load").json()["level"] == "memory"
        assert client.post("/v1/packs/new/pin").json()["pinned"] is True
        assert client.delete("/v1/packs/new").status_code == 409
        assert client.post("/v1/packs/new/unpin").json()["pinned"] is False
        assert ask(client, "new").status_code == 200
        assert ("skillweave_requests_total", "new", "stop") in series(client)
        assert client.delete("/v1/packs/new").json() == {"object": "pack", "name": "new", "deleted": True}
        assert not [key for key in series(client) if "new" in key]
        assert ask(client, "new").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "", {"folder": "damaged"}, 400),
        ("POST", "", {}, 400),
        ("POST", "", {"folder": "y", "more": 1}, 400),
        ("DELETE", "/nobody", None, 404),
        ("POST", "/nobody/pin", None, 404),
        ("POST", "/nobody/load", None, 404),
        ("POST", "/sort/shutdown", None, 400),
    ],
)
def test_mistakes_with_packs_are_told(method: str, path: str, sent: Any, status: int) -> None:
    with client_of(key=KEY, allow_pack_management=True) as client:
        response = client.request(method, f"/v1/packs{path}", json=sent)
        assert response.status_code == status
        assert not (response.json()["error"]["param"] or "").startswith(("body.", "path."))
