"""One writer for each place: other writers are told who holds it, and a dead process holds nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skillweave.artefact import write_text
from skillweave.errors import UserError
from skillweave.files.atomic import atomic_folder
from skillweave.files.lock import Claim, claim, take
from skillweave.files.place import place_of

KEPT: list[Claim] = []
"""The place that a child claims until it is killed."""


def in_child(work: Callable[[], object], ready: Callable[[], bool]) -> int:
    """Fork a child that does ``work`` and then waits to be killed; return its pid once it is ``ready``."""
    child = os.fork()
    if child == 0:
        try:
            work()
            time.sleep(60)
        finally:
            os._exit(1)
    ends = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.01)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def held_by_another(place: Path) -> int:
    lock = place.with_name(f".{place.name}.lock")
    return in_child(lambda: KEPT.append(take(place_of(place))), lambda: lock.exists() and lock.stat().st_size > 0)


def test_the_second_writer_is_told_who_the_first_is_and_a_dead_one_is_no_obstacle(tmp_path: Path) -> None:
    place = tmp_path / "p"
    child = held_by_another(place)
    told = rf"being written by another process \(pid {child} on .*, since 20"
    with pytest.raises(UserError, match=told), atomic_folder(place):
        raise AssertionError("two writers at once")
    kill(child)
    with atomic_folder(place) as temporary:
        (temporary / "x").touch()
    assert os.listdir(tmp_path) == ["p"]


def test_a_living_writers_folder_is_not_taken_for_garbage(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "p") as temporary:
            (temporary / "x").touch()
            time.sleep(60)

    child = in_child(write, lambda: bool(list(tmp_path.glob(".p.new-*/x"))))
    with pytest.raises(UserError, match="being written"), atomic_folder(tmp_path / "p"):
        pass
    assert list(tmp_path.glob(".p.new-*/x"))
    kill(child)


def test_a_worker_that_outlives_its_process_does_not_hold_its_lock(tmp_path: Path) -> None:
    def work() -> None:
        KEPT.append(take(place_of(tmp_path / "p")))
        worker = os.fork()
        if worker == 0:
            (tmp_path / "worker").write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)

    child = in_child(work, lambda: (tmp_path / "worker").exists() and bool((tmp_path / "worker").read_text()))
    kill(child)
    try:
        with claim(tmp_path / "p"):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_who_waits_is_told_and_gets_the_lock(tmp_path: Path, capsys) -> None:
    child = held_by_another(tmp_path / "p")
    threading.Timer(0.3, kill, (child,)).start()
    with claim(tmp_path / "p", waiting="another process converts p; waiting for it"):
        pass
    assert "waiting for it (another process (pid" in capsys.readouterr().err.replace("\n", " ")
    assert os.listdir(tmp_path) == []


def test_a_thread_claims_again_what_it_holds_and_another_thread_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with claim(tmp_path / "p"):
                said.append("two at once")
        except UserError as error:
            said.append(str(error))

    with claim(tmp_path / "p"):
        with claim(tmp_path / "p"), atomic_folder(tmp_path / "p") as temporary:
            (temporary / "x").touch()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / ".p.lock").exists()
    assert "another thread of this process" in said[0]
    assert os.listdir(tmp_path) == ["p"]


def test_folders_that_were_made_for_a_lock_go_with_it_unless_they_are_used(tmp_path: Path) -> None:
    with claim(tmp_path / "a" / "b" / "p"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []
    with claim(tmp_path / "a" / "b" / "p"):
        write_text(tmp_path / "a" / "x", "x")
    assert os.listdir(tmp_path / "a") == ["x"]


def test_a_file_system_without_locks_is_told_and_a_living_holder_respected(tmp_path: Path, monkeypatch, capsys) -> None:
    def none(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".p.new-aaaaaaaa").mkdir()
    with claim(tmp_path / "p") as held:
        assert not held.sure
        holder = json.loads((tmp_path / ".p.lock").read_text())
    assert "has no locks" in capsys.readouterr().err
    with atomic_folder(tmp_path / "p"):
        pass
    assert (tmp_path / ".p.new-aaaaaaaa").exists(), "it may be a living writer's"
    (tmp_path / ".p.lock").write_text(json.dumps({**holder, "pid": os.getppid()}))
    with pytest.raises(UserError, match=f"pid {os.getppid()}"), claim(tmp_path / "p"):
        pass


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "text"])
def test_a_lock_that_is_no_file_is_not_followed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_text("theirs")
    lock = tmp_path / ".p.lock"
    {
        "link": lambda: lock.symlink_to("precious"),
        "hard link": lambda: lock.hardlink_to(tmp_path / "precious"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "text": lambda: lock.write_text("version = 1"),
    }[kind]()
    with pytest.raises(UserError, match=r"\.p\.lock"), claim(tmp_path / "p"):
        pass
    assert (tmp_path / "precious").read_text() == "theirs"
    assert kind != "text" or lock.read_text() == "version = 1"


def test_writers_and_readers_at_once_see_whole_versions_and_no_traceback(tmp_path: Path) -> None:
    place, rounds = tmp_path / "p", 60
    with atomic_folder(place) as temporary:
        (temporary / "x").write_text("0")
    children = []
    for number in (1, 2, 3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                written = 0
                while written < rounds:
                    try:
                        with atomic_folder(place) as temporary:
                            (temporary / "x").write_text(str(number))
                        written += 1
                    except UserError:
                        time.sleep(0.001)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    seen, living = set(), set(children)
    while living:
        seen.add((place / "x").read_text())
        for child in tuple(living):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                living.discard(child)
                assert os.waitstatus_to_exitcode(status) == 0
    assert seen <= {"0", "1", "2", "3"}
    assert os.listdir(tmp_path) == ["p"]
