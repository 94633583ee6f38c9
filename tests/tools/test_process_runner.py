"""A judged process keeps its limits and reaches nothing: no file, no network, no other process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from skillweave.errors import UserError
from skillweave.tools import Limits, process_runner
from skillweave.tools.process_child import Opaque, decode, encode
from skillweave.tools.process_runner import ProcessSession, check_walls, run

ROOMY = Limits(seconds=120)


def _offers_walls() -> bool:
    try:
        return run("1").ok
    except UserError:
        return False


needs_walls = pytest.mark.skipif(not _offers_walls(), reason="this system cannot lock a process in")
pytestmark = needs_walls


def test_value_output_and_inputs() -> None:
    result = run("print('one')\ndef double(x):\n    return 2 * x\ndouble(n) + 1", {"n": 20}, ROOMY)
    assert (result.ok, result.value, result.output, result.error) == (True, 41, "one\n", None)
    assert run("x = 1", limits=ROOMY).value is None


def test_names_stay_within_a_session_alone() -> None:
    with ProcessSession(ROOMY) as session:
        assert session.feed("x = 1", name="answer").ok
        assert session.feed("x, __name__").value == (1, "answer")
    with ProcessSession(ROOMY) as session:
        assert session.feed("x").error == "NameError: name 'x' is not defined"


def test_questions_are_answered_from_outside_and_exceptions_are_raised_inside() -> None:
    asked: list[Any] = []

    def host(*arguments: Any) -> Any:
        asked.append(arguments)
        if arguments[0] == "no":
            raise KeyError("no")
        return (1, {2: [3.5]})

    with ProcessSession(ROOMY) as session:
        code = "a = _sw_host('yes', [1])\ntry:\n    _sw_host('no')\nexcept KeyError:\n    a"
        assert session.feed(code, host=host).ok
        assert session.feed("a").value == (1, {2: [3.5]})
    assert asked == [("yes", [1]), ("no",)]


VALUES = [
    None, True, 0, -(2**200), 1.5, float("inf"), "é\ud800\n", b"\x00\xff", 1 + 2j, [], [1, [2, (3,)]], (), {1, 2},
    frozenset({"a"}), {}, {1: 2, "a": {None: True, (1, 2): []}},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_data_keeps_its_type(value: Any) -> None:
    found = decode(encode(value))
    assert found == value
    assert type(found) is type(value)


def test_what_is_no_plain_data_comes_out_as_a_stand_in() -> None:
    class Lying(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert isinstance(decode(encode(object())), Opaque)
    assert type(decode(encode(Lying(3)))) is int
    assert decode(encode(Lying(3))) != 4


@pytest.mark.parametrize("written", [["eval", "1"], ["list"], ["int", "x"], ["int", 3], 5, {"a": 1}, ["list", 3]])
def test_what_was_not_written_by_encode_is_refused(written: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode(written)


REFUSED = {
    "read a file": "open('/etc/passwd').read()",
    "read the environment of this process": "open('/proc/self/environ').read()",
    "read another process": "open('/proc/1/cmdline').read()",
    "read the parent's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "list the root": "import os\nos.listdir('/')",
    "list processes": "import os\nos.listdir('/proc')",
    "list home": "import os\nos.listdir(os.path.expanduser('~'))",
    "write here": "open('x', 'w')",
    "write in /tmp": "open('/tmp/skillweave-escape', 'w')",
    "write to /dev/shm": "open('/dev/shm/skillweave-escape', 'w')",
    "a temporary file": "import tempfile\ntempfile.TemporaryFile()",
    "make a folder": "import os\nos.mkdir('x')",
    "remove the working folder": "import os\nos.rmdir(os.getcwd())",
    "change its mode": "import os\nos.chmod(os.getcwd(), 0o777)",
    "link": "import os\nos.symlink('/etc/passwd', 'x')",
    "change root": "import os\nos.chroot('/')",
    "a socket": "import socket\nsocket.socket()",
    "a unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a socket pair": "import socket\nsocket.socketpair()",
    "a page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
    "fork": "import os\nos.fork()",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "spawn": "import subprocess\nsubprocess.run(['/bin/true'])",
    "a shell": "import os\n1 / (os.system('true') == 0 and 1 or 0)",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "exec of python": "import os, sys\nos.execv(sys.executable, ['python'])",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "kill the group": "import os\nos.killpg(0, 9)",
    "leave the session": "import os\nos.setsid()",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "another user": "import os\nos.setuid(12345)",
    "a module that is not Python's": "import torch",
    "a module of this project": "import skillweave",
    "standard input": "input()",
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "a memory bomb": "'a' * 10**10",
    "a growing list": "a = []\nwhile True: a.append('x' * 10000)",
    "a large integer": "1 << 10**11",
    "deep recursion": "def f(): return f()\nf()",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "return": "return 3",
    "no Python": "x = (",
    "a lone surrogate": "'\ud800'",
    "closed pipes": "import os\nfor i in range(1, 64):\n    try: os.close(i)\n    except OSError: pass",
    "forged reply": "import os\nfor i in range(3, 64):\n"
    "    try: os.write(i, b'{\"value\": true}\\n')\n    except OSError: pass",
}


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_nothing_gets_out(code: str) -> None:
    result = run(code, limits=ROOMY)
    assert not result.ok
    assert result.error
    assert "TimeoutError" not in result.error
    assert not Path("/tmp/skillweave-escape").exists()


def test_ptrace_is_refused() -> None:
    code = "import ctypes, os\nctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0)"
    assert run(code, limits=ROOMY).value == -1


def test_the_environment_the_folder_and_the_descriptors_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "of the user")
    found = run("import os\ndict(os.environ)", limits=ROOMY).value
    assert set(found) <= {"LC_CTYPE"}  # set by Python itself
    opened = (
        "import os\ncount = 0\nfor i in range(3, 64):\n"
        "    try:\n        os.fstat(i)\n        count += 1\n    except OSError: pass\ncount"
    )
    with open(os.devnull) as left_open:
        os.set_inheritable(left_open.fileno(), True)
        assert run(opened, limits=ROOMY).value == 2  # the two pipes


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import threading\nthreading.Event().wait()",
        "import signal\nfor s in {*signal.Signals} - {9, 19}:\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except OSError: pass\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()\nf()",
        "while True: print('y' * 1000)",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    ],
)
def test_what_has_no_end_is_killed_at_the_time_limit(code: str) -> None:
    with ProcessSession(Limits(seconds=0.4)) as session:
        result = session.feed(code)
        assert result.error is not None
        assert result.error.startswith("TimeoutError")
        assert not session.feed("1").ok
        assert session._process is not None
        assert session._process.poll() == -signal.SIGKILL


def test_output_is_cut_and_the_run_goes_on() -> None:
    limits = Limits(seconds=120, output=500)
    assert run("for i in range(20000):\n    print('y' * 9)\n'end'", limits=limits).value == "end"
    assert run("print('z' * 10**6)", limits=limits).output == "z" * 500
    assert run("print('é' * 500)", limits=limits).output == "é" * 500


def test_threads_work() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n"
        "    found = list(pool.map(abs, [-1, -2]))\nfound"
    )
    assert run(code, limits=Limits(seconds=120, memory=256 * 2**20)).value == [1, 2]


def test_sessions_of_several_threads_do_not_meet() -> None:
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(run("n * n", {"n": n}, ROOMY).value)) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [n * n for n in range(6)]


ORPHAN = """
import os, sys
from skillweave.tools.process_runner import ProcessSession
from skillweave.tools import Limits
session = ProcessSession(Limits(seconds=600)).__enter__()
print(session._process.pid, flush=True)
session.feed("while True: pass")
"""


def test_a_process_does_not_outlive_who_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(600):
        if not _runs(child):
            return
        time.sleep(0.1)
    raise AssertionError("the judged process still runs a minute after its parent was killed")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ALL = {"network": True, "files": True, "calls": True, "user": True}


@pytest.mark.parametrize("missing", ["network", "files", "other processes"])
def test_a_system_without_a_wall_needs_consent(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_runner, "_told", True)
    walls = {**ALL, "calls" if missing == "other processes" else missing: False}
    with pytest.raises(UserError, match=f"no wall around (the )?{missing}.*allow_unjailed: true"):
        check_walls(walls, allow_unjailed=False)
    check_walls(walls, allow_unjailed=True)


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(process_runner, "_told", False)
    for _ in range(2):
        check_walls({**ALL, "user": False}, allow_unjailed=False)
    assert capsys.readouterr().err.count("user of their own") == 1
