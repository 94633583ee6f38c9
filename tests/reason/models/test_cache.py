"""The file of answers: nothing is paid twice, whatever happens to the server, the process or the file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.fault_server import Reply, fault_server
from helpers.scripted_model import ScriptedModel
from skillweave.errors import UserError
from skillweave.reason.models.cache import AnswerCache, CachedModel, call_key
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable
from skillweave.reason.models.openai_model import OpenAIModel

CALL = ModelCall((("user", "Hello"),), temperature=1.0, max_tokens=9, seed=0)
ANSWER = Completion("häi 🙂\n\0", "length", 3, 2)


def calls(count: int) -> list[ModelCall]:
    return [replace(CALL, seed=seed) for seed in range(count)]


def test_an_answer_is_stored_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.sqlite"
    with AnswerCache(path) as cache:
        assert cache.get("k") is None
        assert cache.put("k", ANSWER) == ANSWER
        assert cache.put("k", replace(ANSWER, text="another process was faster")) == ANSWER
        assert cache.put("half", replace(ANSWER, text="a\ud83d")).text == "a?"
    with AnswerCache(path) as cache:
        assert (cache.get("k"), len(cache)) == (ANSWER, 2)


def test_the_key_holds_all_that_decides_the_answer() -> None:
    others = [
        replace(CALL, messages=(("user", "Hello!"),)),
        replace(CALL, messages=(("system", "Hello"),)),
        replace(CALL, temperature=0.5),
        replace(CALL, max_tokens=8),
        replace(CALL, seed=1),
    ]
    keys = [call_key("m", call) for call in [CALL, *others]] + [call_key("n", CALL)]
    assert len(set(keys)) == 7
    assert call_key("m", replace(CALL)) == keys[0]


def test_equal_calls_are_paid_once(tmp_path: Path) -> None:
    async def run() -> None:
        answers = await asyncio.gather(*(cached.complete(CALL) for _ in range(5)), cached.complete(calls(2)[1]))
        assert {answer.text for answer in answers} == {"yes"}
        await cached.complete(CALL)

    with AnswerCache(tmp_path / "a") as cache:
        model = ScriptedModel(lambda call: "yes")
        cached = CachedModel(model, cache)
        asyncio.run(run())
        assert (len(model.calls), cached.paid, cached.misses, cached.hits, len(cache)) == (2, 2, 2, 5, 2)


def test_a_failed_request_is_not_stored_and_all_who_wait_are_told(tmp_path: Path) -> None:
    def dead(call: ModelCall) -> str:
        raise ModelUnreachable("gone")

    async def run() -> None:
        results = await asyncio.gather(*(cached.complete(CALL) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ModelUnreachable] * 3
        assert (cached.paid, len(cache)) == (0, 0)
        model._script = lambda call: "yes"
        assert (await cached.complete(CALL)).text == "yes"

    with AnswerCache(tmp_path / "a") as cache:
        model = ScriptedModel(dead)
        cached = CachedModel(model, cache)
        asyncio.run(run())


def test_a_request_goes_on_while_anyone_waits_for_it(tmp_path: Path) -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def late(call: ModelCall) -> str:
            await go.wait()
            return "yes"

        model = ScriptedModel(late)
        cached = CachedModel(model, cache)
        first, second = (asyncio.create_task(cached.complete(CALL)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        assert model.in_flight == 1
        go.set()
        assert (await second).text == "yes"

        go.clear()
        only = asyncio.create_task(cached.complete(calls(2)[1]))
        await asyncio.sleep(0.01)
        only.cancel()
        await asyncio.sleep(0.01)
        assert model.in_flight == 0  # the model stops working for nobody
        third = asyncio.create_task(cached.complete(calls(2)[1]))
        await asyncio.sleep(0.01)
        await cached.close()
        with pytest.raises(asyncio.CancelledError):
            await third
        assert model.closed
        assert (len(model.calls), cached.paid, len(cache)) == (3, 1, 1)

    with AnswerCache(tmp_path / "a") as cache:
        asyncio.run(run())


FAULTS = [
    Reply(how="hang"),
    Reply(429, {}, {"Retry-After": "0.01"}),
    Reply(500),
    Reply(200, "garbage"),
    Reply(how="cut"),
    Reply(200, {"choices": []}),
]


def test_a_server_that_fails_dies_and_comes_back_is_paid_once_for_each_call(tmp_path: Path) -> None:
    async def run() -> list[Completion | BaseException]:
        with AnswerCache(tmp_path / "a") as cache:
            model = CachedModel(OpenAIModel(server.url, "m", timeout=1.0, retries=6, wait=0.001), cache)
            try:
                return await asyncio.gather(*map(model.complete, calls(24)), return_exceptions=True)
            finally:
                await model.close()

    dies = [Reply() if number % 3 else fault for number, fault in enumerate(FAULTS * 2)]
    with fault_server(*dies, after=Reply(how="hang up")) as server:
        first = asyncio.run(run())  # answers some calls, and then no more
        assert all(isinstance(one, Completion | ModelUnreachable) for one in first)
        got = [one for one in first if isinstance(one, Completion)]
        assert 0 < len(got) < 24
        assert len(got) == len(server.paid)
        server.die()
        second = asyncio.run(run())
        assert [isinstance(one, Completion) for one in second] == [isinstance(one, Completion) for one in first]
        server.replies, server.after = list(FAULTS), Reply()
        server.start()
        assert all(isinstance(one, Completion) for one in asyncio.run(run()))
    seeds = [request["seed"] for request in server.paid]
    assert sorted(seeds) == list(range(24))


def test_a_killed_process_has_stored_what_it_paid_for(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.model import ModelCall
from helpers.scripted_model import ScriptedModel

async def run():
    model = CachedModel(ScriptedModel(lambda call: "yes"), AnswerCache(sys.argv[1]))
    for seed in range(10**6):
        await model.complete(ModelCall((("user", "Hello"),), 1.0, 9, seed))
        print(seed, flush=True)

asyncio.run(run())
"""
    path = tmp_path / "a"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    used = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    used += map(int, process.stdout.read().split())
    process.wait()
    with AnswerCache(path) as cache:
        model = ScriptedModel(lambda call: "no")
        cached = CachedModel(model, cache)
        for seed in used:
            assert asyncio.run(cached.complete(replace(CALL, seed=seed))).text == "yes"
        assert not model.calls
        assert len(cache) - len(used) in (0, 1)  # one may be stored and not yet used


def test_two_processes_may_share_the_file(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as one, AnswerCache(tmp_path / "a") as other:
        for number in range(20):
            (one if number % 2 else other).put(str(number), ANSWER)
        assert len(one) == len(other) == 20
        one._file.execute("PRAGMA busy_timeout = 10")
        other._file.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="another process has held it"):
            one.put("k", ANSWER)


def test_a_file_that_is_not_ours_is_never_overwritten(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "notes.txt", tmp_path / "other.sqlite", tmp_path / "newer.sqlite"
    text.write_text("my notes " * 500)
    with sqlite3.connect(other) as file:
        file.execute("CREATE TABLE answers (mine TEXT)")
    AnswerCache(newer).close()
    with sqlite3.connect(newer) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        file.execute("PRAGMA user_version = 7")
    letter, stump = tmp_path / "letter.txt", tmp_path / "stump.sqlite"
    letter.write_text("x")  # SQLite would take it for an empty database
    stump.write_bytes(newer.read_bytes()[:200])
    for path, error in (
        (text, "not a file of answers"),
        (letter, "1 of at least 512 bytes"),
        (stump, "200 of at least 512 bytes"),
        (other, "of another program"),
        (newer, "has version 7"),
    ):
        before = path.read_bytes()
        with pytest.raises(UserError, match=error):
            AnswerCache(path)
        assert path.read_bytes() == before
    with pytest.raises(UserError, match="is a folder"):
        AnswerCache(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe"):
        AnswerCache(tmp_path / "pipe")


def test_an_empty_file_becomes_ours(tmp_path: Path) -> None:
    (tmp_path / "a").touch()  # a process that was killed right after it had made the file
    with AnswerCache(tmp_path / "a") as cache:
        assert cache.put("k", ANSWER) == ANSWER


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with AnswerCache(path) as cache:
        for number in range(500):
            cache.put(str(number), replace(ANSWER, text="x" * 200))
    whole = path.read_bytes()
    overwritten, hole = whole[:4096] + b"\xaa" * (len(whole) - 4096), whole[:9000] + bytes(8000) + whole[17000:]
    for data in (overwritten, hole, whole[:20000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a, the answers of models: the file is damaged"):
            AnswerCache(path)
        assert path.read_bytes() == data
    with AnswerCache(tmp_path / "b") as cache:
        cache._file.execute("INSERT INTO answers VALUES ('k', 'text', 'never', 1, 1)")
        with pytest.raises(UserError, match="values of the wrong kind"):
            cache.get("k")


def test_damage_after_the_opening_is_named(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as cache:
        for number in range(500):
            cache.put(str(number), replace(ANSWER, text="x" * 200))
    with AnswerCache(tmp_path / "a") as cache:
        with (tmp_path / "a").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xaa" * 200_000)
        cache._file.execute("PRAGMA shrink_memory")
        with pytest.raises(UserError, match="the file is damaged"):
            cache.get("7")


def test_a_full_disk_is_named_and_earlier_answers_are_kept(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a") as cache:
        cache.put("first", ANSWER)
        pages = cache._number("page_count")
        cache._file.execute(f"PRAGMA max_page_count = {pages}")  # SQLite reports it as it reports a full disk
        with pytest.raises(UserError, match=r"no space is left on the disk\. All earlier answers are kept"):
            cache.put("large", replace(ANSWER, text="x" * 50_000))
        assert cache.get("first") == ANSWER
    with AnswerCache(tmp_path / "a") as cache:
        assert (cache.get("first"), len(cache)) == (ANSWER, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    AnswerCache(tmp_path / "a").close()
    (tmp_path / "a").chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with AnswerCache(tmp_path / "a") as cache, pytest.raises(UserError, match="cannot be written"):
            cache.put("k", ANSWER)
    finally:
        tmp_path.chmod(0o700)
