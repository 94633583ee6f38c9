"""Faults of clients: malformed bodies, clients that send or read too slowly, and clients that vanish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from benchmarks.serve_faults.overload import CALLERS, MODELS, Trial
from benchmarks.serve_faults.served import KEY, PACKS, Served, ServerProcess
from benchmarks.serve_faults.traffic import Background, body_of, client_of, note_refusal

SETTLE = 1.0
"""Seconds within which nothing may be left of a client that vanished."""
BODY_SECONDS, STALLED_SECONDS = 2.0, 2.0
"""The server's limits for slow clients: its defaults take too long for a benchmark."""
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

# -- malformed bodies --------------------------------------------------------------------------------------------------


async def malformed(server: ServerProcess, served: Served, count: int) -> Trial:
    """Send bodies that no client should send. Each must be refused with a status from 400 to 499 and a reason."""
    trial = Trial(f"{count} malformed bodies", count)
    draw = random.Random(10)
    async with client_of(server) as client, Background(client, served, MODELS, 4, 10) as traffic:
        for number in range(count):
            kind = _BODIES[number % len(_BODIES)]
            path, data, more = kind(draw, body_of(draw.choice(PACKS), draw.choice(served.prompts)))
            got = await client.post(path, content=data, headers={"content-type": "application/json", **more})
            if 400 <= got.status_code < 500:
                note_refusal(got.status_code, got.text, trial.tally)
            else:
                trial.tally.lost.append(f"{kind.__name__}: status {got.status_code} for {data[:200]!r}")
        # What is no HTTP at all is answered by the HTTP library, before the API.
        for data in _NO_HTTP:
            answer = await _raw(server, data)
            if not answer.startswith(b"HTTP/1.1 4"):
                trial.tally.lost.append(f"no HTTP: {answer[:100]!r} for {data[:100]!r}")
    trial.tally.add(traffic.tally)
    trial.note = f"of {len(_BODIES)} kinds; {len(_NO_HTTP)} requests that are no HTTP beside them"
    return trial


Sent = tuple[str, bytes, dict[str, str]]


def _as_sent(body: Any, path: str = _PATHS[0], **headers: str) -> Sent:
    return path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers


def _cut_json(draw: random.Random, body: dict[str, Any]) -> Sent:
    data = json.dumps(body).encode()
    return _as_sent(data[: draw.randrange(1, len(data) - 1)], draw.choice(_PATHS))


def _noise(draw: random.Random, _: dict[str, Any]) -> Sent:
    return _as_sent(b"\xff" + draw.randbytes(draw.randrange(0, 300)), draw.choice(_PATHS))


def _wrong_type(draw: random.Random, body: dict[str, Any]) -> Sent:
    key = draw.choice(["model", "messages", "max_tokens", "temperature", "stream", "stop", "tools", "n", "seed"])
    value = draw.choice([{"a": []}, [[[]]], "\u0000", -1.5e300, {"": None}, [{}], "NaN", [1, "x", None]])
    if key == "stop" and value in ("\u0000", "NaN"):
        value = [[value]]
    if key == "model" and isinstance(value, str):
        value = {"model": value}
    return _as_sent({**body, key: value})


def _out_of_range(draw: random.Random, body: dict[str, Any]) -> Sent:
    key, value = draw.choice(
        [("temperature", -1), ("temperature", 1e9), ("top_p", 7), ("n", 0), ("n", 10**6), ("max_tokens", -5),
         ("max_tokens", 10**12), ("seed", 2**70), ("top_logprobs", 99), ("stop", ["a"] * 9), ("messages", [])]
    )  # fmt: skip
    return _as_sent({**body, key: value})


def _unknown(draw: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent({**body, draw.choice(["modle", "Messages", "__proto__", "\u202e", "x" * 5000]): 1})


def _unknown_model(draw: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent({**body, "model": draw.choice(["", "nobody", "../p0", "p0\n", "a" * 100_000, "\u0000"])})


def _not_a_number(draw: random.Random, body: dict[str, Any]) -> Sent:
    number = draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
    return _as_sent(json.dumps(body).replace('"temperature": 0', f'"temperature": {number}').encode())


def _twice(_: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent(json.dumps(body).encode()[:-1] + b', "model": "base"}')


def _deep(draw: random.Random, body: dict[str, Any]) -> Sent:
    depth = draw.choice([200, 5000, 100_000])
    return _as_sent(json.dumps(body).encode()[:-1] + b', "metadata": ' + b"[" * depth + b"]" * depth + b"}")


def _no_object(draw: random.Random, _: dict[str, Any]) -> Sent:
    return _as_sent(draw.choice([b"null", b"[]", b'"x"', b"1", b"", b" ", b"{}"]), draw.choice(_PATHS))


def _half_character(_: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent(json.dumps(body).replace('"user"', '"\\ud800"').encode())


def _wrong_media(draw: random.Random, body: dict[str, Any]) -> Sent:
    kind = draw.choice(["text/plain", "multipart/form-data; boundary=x", "application/xml", "", "application/json5"])
    return _as_sent(body, **{"content-type": kind})


def _bad_messages(draw: random.Random, body: dict[str, Any]) -> Sent:
    message = draw.choice(
        [{"role": "user"}, {"content": "x"}, {"role": "wizard", "content": "x"}, {"role": "user", "content": 5},
         {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
         {"role": "tool", "content": "x"}, "hello", None, {"role": "user", "content": "x", "evil": 1}]
    )  # fmt: skip
    return _as_sent({**body, "messages": [message]})


def _bad_schema(draw: random.Random, body: dict[str, Any]) -> Sent:
    schema = draw.choice(
        [{"type": "wizard"}, {"$ref": "http://127.0.0.1/x"}, {"type": "string", "pattern": "(a+)+$(["},
         {"allOf": "x"}, {"$ref": "#/nowhere"}, {"type": "array", "minItems": 5, "maxItems": 1}]
    )  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return _as_sent({**body, "response_format": form})


def _too_long(draw: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent({**body, "messages": [{"role": "user", "content": "x" * draw.choice([2000, 100_000])}]})


def _too_large(draw: random.Random, body: dict[str, Any]) -> Sent:
    return _as_sent({**body, "user": "x" * draw.choice([5 * 2**20, 8 * 2**20])})


_BODIES: tuple[Callable[[random.Random, dict[str, Any]], Sent], ...] = (
    _cut_json, _noise, _wrong_type, _out_of_range, _unknown, _unknown_model, _not_a_number, _twice, _deep, _no_object,
    _half_character, _wrong_media, _bad_messages, _bad_schema, _too_long, _too_large,
)  # fmt: skip

_NO_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # the beginning of TLS
    b"GET\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
)


async def _raw(server: ServerProcess, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(2000), 10)
        return b""
    except TimeoutError:
        return b"(nothing within 10 seconds)"
    finally:
        writer.close()


# -- slow clients ------------------------------------------------------------------------------------------------------


async def slow(server: ServerProcess, served: Served, count: int) -> Trial:
    """Send bodies byte by byte, or do not read the answer. Both must end, and others must not wait for them."""
    trial = Trial("clients that send or read too slowly", count)
    disconnected = 0
    others = [model for model in MODELS if model != PACKS[1]]  # only those that do not read ask this one
    async with client_of(server) as client, Background(client, served, others, 4, 20) as traffic:
        ends = await asyncio.gather(
            *(_drip(server, served) if number % 2 else _unread(server, served) for number in range(count))
        )
    for number, end in enumerate(ends):
        if number % 2 and end.startswith(b"HTTP/1.1 408"):
            trial.tally.refused[408] += 1
        elif end == b"disconnected":
            disconnected += 1
        else:
            trial.tally.lost.append(f"a slow client got {end[:100]!r}")
    trial.tally.broken += disconnected
    trial.tally.add(traffic.tally)
    await _settled(server, trial)
    trial.note = f"408 after {BODY_SECONDS:g} s, disconnected after {STALLED_SECONDS:g} s; {trial.note}"
    return trial


async def _drip(server: ServerProcess, served: Served) -> bytes:
    """Send a body by a byte a tenth of a second; return what the server says."""
    data = json.dumps(body_of(PACKS[0], served.prompts[0])).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(_head(len(data)))
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(reader.read(2000), 0.1)
        return b"(the whole body was taken)"
    except ConnectionError:
        return b"(cut without a reason)"
    finally:
        writer.close()


async def _unread(server: ServerProcess, served: Served) -> bytes:
    """Ask for many megabytes and read nothing until the server should have disconnected; then read what came."""
    # The form has at least 300 numbers, and each token 20 alternatives, so the answers fit into no buffer.
    form = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 300}
    wanted = body_of(
        PACKS[1], served.prompts[0], stream=True, n=16, logprobs=True, top_logprobs=20,
        response_format={"type": "json_schema", "json_schema": {"name": "numbers", "schema": form}},
    )  # fmt: skip
    data = json.dumps({**wanted, "temperature": 1, "max_tokens": 900}).encode()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(raw, ("127.0.0.1", server.port))
        await loop.sock_sendall(raw, _head(len(data)) + data)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            await asyncio.sleep(0.5)
            if not await asyncio.to_thread(server.metric, "skillweave_pack_in_use", pack=PACKS[1]):
                break
        got = b""
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.wait_for(loop.sock_recv(raw, 2**16), 60):
                got = got[-2000:] + part
        return b"(the whole answer)" if b"[DONE]" in got else b"disconnected"
    except TimeoutError:
        return b"(not disconnected)"
    finally:
        raw.close()


def _head(length: int) -> bytes:
    return (
        f"POST {_PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


# -- clients that vanish -----------------------------------------------------------------------------------------------


async def vanish(server: ServerProcess, served: Served, count: int) -> Trial:
    """Vanish at every stage of a request, by an end or a reset of the connection. Nothing may be left in the server."""
    trial = Trial(f"{count} clients that vanish", count)
    draw = random.Random(30)
    async with client_of(server) as client, Background(client, served, MODELS, CALLERS, 30) as traffic:
        for _ in range(0, count, 20):
            await asyncio.gather(*(_vanish(server, served, random.Random(draw.random())) for _ in range(20)))
    trial.tally.broken += count
    trial.tally.add(traffic.tally)
    await _settled(server, trial)
    return trial


async def _vanish(server: ServerProcess, served: Served, draw: random.Random) -> None:
    stage = draw.choice(["head", "half", "waiting", "streaming"])
    more = {"max_tokens": 512, "stream": True} if stage == "streaming" or draw.random() < 0.5 else {"max_tokens": 512}
    data = json.dumps(body_of(draw.choice(MODELS), draw.choice(served.prompts), n=draw.choice([1, 3]), **more)).encode()
    if b'"n": 3' in data:
        data = data.replace(b'"temperature": 0', b'"temperature": 1')
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = _head(len(data))
    writer.write({"head": head[:40], "half": head + data[: len(data) // 2]}.get(stage, head + data))
    with contextlib.suppress(ConnectionError, TimeoutError):
        await writer.drain()
        if stage == "streaming":
            await asyncio.wait_for(reader.read(draw.randrange(1, 3000)), 30)
        else:
            await asyncio.sleep(draw.random() * 0.1)
    if draw.random() < 0.5:  # a reset, as from a machine that restarts
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _settled(server: ServerProcess, trial: Trial) -> None:
    """Wait until nothing runs or waits in the server and no pack is held; note how long it takes."""
    began = time.monotonic()
    names = ("skillweave_requests_running", "skillweave_requests_waiting", "skillweave_pack_in_use")
    while True:
        left = {name: server.metric(name) for name in names}
        seconds = time.monotonic() - began
        if not any(left.values()):
            break
        if seconds > 10:
            trial.tally.lost.append(f"left in the server after {seconds:.0f} s: {left}")
            break
        await asyncio.sleep(0.02)
    trial.figures["settled_seconds"] = seconds
    trial.note = f"running and waiting are 0 after {seconds:.2f} s"
