"""The cache of answers: nothing is paid twice, and a file of another kind is never touched."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scripted_model import ScriptedModel
from skillweave.errors import UserError
from skillweave.reason.models.cache import AnswerCache, CachedModel
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable


def call(text: str = "hello", **changed: object) -> ModelCall:
    return ModelCall(**{"messages": (("user", text),), "temperature": 1.0, "max_tokens": 8, "seed": 0} | changed)


def test_an_answer_is_paid_once_also_after_a_restart(tmp_path: Path) -> None:
    for start in range(2):
        model = ScriptedModel(lambda one: "hi \ud800 there")
        with AnswerCache(tmp_path / "new" / "answers.sqlite") as cache:
            cached = CachedModel(model, cache)
            answers = [asyncio.run(cached.complete(call())) for _ in range(2)]
        assert (cached.paid, len(model.calls)) == ((1, 1) if start == 0 else (0, 0))
        assert answers[1].text == "hi ? there"
    assert cached.identity == model.identity


@pytest.mark.parametrize(
    "other",
    [call("hallo"), call(temperature=0.5), call(max_tokens=9), call(seed=1), call(messages=(("system", "hello"),))],
)
def test_other_calls_have_answers_of_their_own(tmp_path: Path, other: ModelCall) -> None:
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cached = CachedModel(ScriptedModel(lambda one: str(one)), cache)
        assert asyncio.run(cached.complete(call())) != asyncio.run(cached.complete(other))
        assert asyncio.run(CachedModel(ScriptedModel(lambda one: "x", "another"), cache).complete(call())).text == "x"


def test_equal_calls_in_flight_share_one_request(tmp_path: Path) -> None:
    async def late(one: ModelCall) -> str:
        await asyncio.sleep(0.02)
        return "hi"

    async def go() -> None:
        with AnswerCache(tmp_path / "a.sqlite") as cache:
            model = ScriptedModel(late)
            cached = CachedModel(model, cache)
            tasks = [asyncio.ensure_future(cached.complete(call())) for _ in range(5)]
            await asyncio.sleep(0.005)
            tasks[0].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [getattr(one, "text", None) for one in results] == [None, "hi", "hi", "hi", "hi"]
            assert (len(model.calls), cached.paid) == (1, 1)

    asyncio.run(go())


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    answers = iter([ModelUnreachable("down"), "up"])

    def script(one: ModelCall) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cached = CachedModel(ScriptedModel(script), cache)
        with pytest.raises(ModelUnreachable):
            asyncio.run(cached.complete(call()))
        assert asyncio.run(cached.complete(call())).text == "up"


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    code = (
        "import sys; from skillweave.reason.models.cache import AnswerCache\n"
        "from skillweave.reason.models.model import Completion\n"
        "cache = AnswerCache(sys.argv[1])\n"
        "for n in range(200): cache.put(f'{sys.argv[2]}{n}', Completion('x', 'stop', 1, 1))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    with AnswerCache(path) as cache:
        assert all(cache.get(f"{name}{n}") == Completion("x", "stop", 1, 1) for name in "ab" for n in range(200))


def test_files_of_another_kind_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other, newer, folder = (tmp_path / name for name in ("text", "other", "newer", "folder"))
    text.write_text("not a database " * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    AnswerCache(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 9")
    folder.mkdir()
    for path, said in (
        (text, "cannot be used"),
        (other, "another program"),
        (newer, "format 9"),
        (folder, "cannot be"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(UserError, match=said):
            AnswerCache(path)
        assert not before or path.read_bytes() == before


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put("first", Completion("x", "stop", 1, 1))
        cache._connection.execute("PRAGMA max_page_count = 5")
        with pytest.raises(UserError, match="the disk is full"):
            for number in range(50):
                cache.put(str(number), Completion("x" * 4000, "stop", 1, 1))
        assert cache.get("first") is not None
