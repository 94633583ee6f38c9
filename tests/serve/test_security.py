"""The guards: the key, the address, the Host header, and bodies that are too large, too slow or not JSON."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from helpers.asgi import Response, call, echo
from skillweave.errors import UserError
from skillweave.serve import refusal
from skillweave.serve.security import BodyGuard, HostGuard, KeyGuard, address_of

KEY = "sw-0123456789abcdef"


def asked(app: Any, **request: Any) -> Response:
    return asyncio.run(call(app, **request))


# -- the address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1", "127.8.9.10"])
def test_this_machine_needs_no_key(host: str) -> None:
    _, where = address_of(host, 0, None)
    assert where[0] == "::1" or where[0].startswith("127.")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "192.0.2.7", "::ffff:192.0.2.7"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(UserError, match="there is no key"):
        address_of(host, 0, None)
    address_of(host, 0, KEY)


def test_a_name_of_this_machine_that_resolves_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"means 192\.0\.2\.7"):
        address_of("localhost", 0, None)


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(UserError, match="no address is known"):
        address_of("no-such-host.invalid", 0, KEY)


def test_every_web_page_needs_a_key() -> None:
    with pytest.raises(UserError, match="every web page"):
        address_of("127.0.0.1", 0, None, ["*"])
    address_of("127.0.0.1", 0, KEY, ["*"])


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "])
def test_the_right_key_passes(value: str) -> None:
    assert asked(KeyGuard(echo, KEY), headers=[("Authorization", value)]).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", KEY)],
        [("Authorization", "Bearer")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", "Bearer schl\xfcssel")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")],
        [("X-Api-Key", KEY)],
    ],
)
def test_anything_else_is_refused_without_showing_the_key(headers: list[tuple[str, str]]) -> None:
    response = asked(KeyGuard(echo, KEY), headers=headers)
    assert (response.status, response.error["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY.encode() not in response.body


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/ready", 200), ("/metrics", 401), ("/v1/models", 401)]
)
def test_only_the_state_of_the_process_needs_no_key(path: str, status: int) -> None:
    assert asked(KeyGuard(echo, KEY), path=path, method="GET", headers=[]).status == status


# -- the Host header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000", "127.0.0.2:80"]
)
def test_names_of_this_machine_pass(host: str) -> None:
    assert asked(HostGuard(echo, "127.0.0.2"), headers=[("Host", host)]).status == 200


@pytest.mark.parametrize(
    "hosts",
    [["evil.example"], ["evil.example:8000"], ["127.0.0.1.evil.example"], ["127.0.0.1@evil"], [""], [], ["localhost:x"],
     ["localhost", "evil.example"], ["0.0.0.0"]],
)  # fmt: skip
def test_other_names_are_refused(hosts: list[str]) -> None:
    response = asked(HostGuard(echo, "127.0.0.1"), headers=[("Host", host) for host in hosts])
    assert (response.status, response.error["code"]) == (403, "host_not_allowed")


# -- the body ----------------------------------------------------------------------------------------------------------

GUARD = BodyGuard(echo, largest=1000, seconds=0.2)
JSON = ("Content-Type", "application/json; charset=utf-8")


def test_a_good_body_passes_unchanged() -> None:
    response = asked(GUARD, headers=[JSON], chunks=[b'{"a": ', '"ä 😀"'.encode(), b"}"])
    assert (response.status, response.body) == (200, '{"a": "ä 😀"}'.encode())


def test_a_request_without_a_body_passes() -> None:
    assert asked(GUARD, method="DELETE", headers=[], chunks=[b""]).status == 200
    assert asked(GUARD, method="GET", headers=[], chunks=[]).status == 200


def test_the_largest_body_passes_and_one_byte_more_does_not() -> None:
    largest = b'"' + b"a" * 998 + b'"'
    assert asked(GUARD, headers=[JSON], chunks=[largest]).status == 200
    assert asked(GUARD, headers=[JSON], chunks=[largest + b" "]).status == 413


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a refused body is waited for a moment, not two seconds."""
    monkeypatch.setattr(refusal, "_LINGER_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_large_body_is_refused_by_its_length_before_it_is_read() -> None:
    response = asked(GUARD, headers=[JSON, ("Content-Length", "1001")], chunks=[])
    assert (response.status, response.error["code"]) == (413, "body_too_large")
    assert asked(GUARD, headers=[JSON, ("Content-Length", "9" * 400)], chunks=[]).status == 413


def test_chunks_are_counted() -> None:
    assert asked(GUARD, headers=[JSON], chunks=[b"a" * 300] * 1000).status == 413


@pytest.mark.parametrize("length", ["-1", "ten", "0x10"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    assert asked(GUARD, headers=[JSON, ("Content-Length", length)]).status == 400


@pytest.mark.usefixtures("impatient")
def test_a_slow_body_is_given_up() -> None:
    response = asked(GUARD, headers=[JSON], chunks=[b"1"] * 100, pause=0.05)
    assert (response.status, response.error["code"]) == (408, "body_timeout")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"temperature": NaN}', "finite number"),
        (b'{"temperature": 1e999}', "finite number"),
        (b'{"seed": ' + b"9" * 30 + b"}", "larger than any"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 200 + b"]" * 200, "nested more than"),
        (b"[" * 999, "JSON"),
        (b'{"a": "\\ud83d"}', "half a character"),
    ],
)
def test_malformed_bodies_are_refused_in_the_shape_of_openai(body: bytes, message: str) -> None:
    response = asked(GUARD, headers=[JSON], chunks=[body])
    assert response.status == 400
    assert set(response.error) == {"message", "type", "param", "code"}
    assert (response.error["type"], response.error["code"]) == ("invalid_request_error", "invalid_json")
    assert message in response.error["message"]


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json"]
)
def test_scripts_of_other_pages_cannot_send_plain_text(kind: str | None) -> None:
    response = asked(GUARD, headers=[] if kind is None else [("Content-Type", kind)])
    assert (response.status, response.error["code"]) == (400, "invalid_content_type")


def test_a_compressed_body_is_told_to_come_as_it_is() -> None:
    response = asked(GUARD, headers=[JSON, ("Content-Encoding", "gzip")], chunks=[b"\x1f\x8b"])
    assert (response.status, response.error["code"]) == (400, "invalid_header")
    assert "send the body as it is" in response.error["message"]


def test_deep_and_large_bodies_do_not_end_the_server() -> None:
    guard = BodyGuard(echo, largest=2**20, seconds=5)
    for body in (b"[" * 2**20, b'{"a":' * 2**17, b"[" * 2**19 + b"]" * 2**19, b"9" * 2**19):
        assert asked(guard, headers=[JSON], chunks=[body]).status == 400
