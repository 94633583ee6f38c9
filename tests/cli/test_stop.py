"""Ctrl-C and other signals end with one sentence and the right exit code, at any moment; so does a full memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

import skillweave.engine
from helpers.terminal import run

SENTENCE = "Stopped. Run the same command again to resume."


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Restore Ctrl-C: tests in the background of a shell inherit an ignored one, and pass it on to their processes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _program(body: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    """A process that runs ``body``; ``press`` sends it a Ctrl-C."""
    code = (
        "import os, signal, sys, threading, time\n"
        "def press(number=signal.SIGINT): os.kill(os.getpid(), number); time.sleep(0.01)\n"
        f"{before}\n"
        "import skillweave.cli.app as app\n"
        f"def command():\n{textwrap.indent(body, '    ')}\n"
        "app.main = command\n"
        "from skillweave.cli import main\nmain()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def _stopped(ran: subprocess.CompletedProcess[str], number: int = signal.SIGINT) -> None:
    assert ran.returncode == 128 + number, ran
    assert ran.stderr.strip() == SENTENCE


WAYS = {
    "at once": "press()",
    "swallowed": "try: press()\nexcept BaseException: raise ImportError('numpy could not be imported')",
    "twice quickly": "try: press(); time.sleep(5)\nfinally: press(); press()",
    "in a finally": "try: pass\nfinally: press()",
    "in a thread": "threading.Thread(target=press).start()\ntime.sleep(20)",
    "while an object is freed": "class A:\n    def __del__(self): press()\ndel_me = A()\ndel del_me\ntime.sleep(20)",
    "in a bar": "from skillweave.progress import bar\nwith bar('x', 3) as advance:\n    advance()\n    press()",
    "as another error": "try: press()\nexcept KeyboardInterrupt: raise ValueError('x')",
    "as an exit": "try: press()\nexcept KeyboardInterrupt: sys.exit(1)",
    "with a worker": (
        "pid = os.fork()\nif pid == 0:\n    time.sleep(0.2)\n    press()\n    time.sleep(20)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130\npress()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_control_c_ends_in_a_sentence(way: str) -> None:
    _stopped(_program(WAYS[way]))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("serve weave", "Stopped."),
        ("audit model tuned", "Stopped. Run the same command again to start anew."),
        ("cku score -b base", "Stopped. Run the same command again to start anew."),
        ("cku report -b base", SENTENCE),
        ("generate weave hello", "Stopped. Run the same command again to start anew."),
        ("generate weave -i prompts.jsonl --out=answers.jsonl", SENTENCE),
        ("eval weave --task sums.jsonl -o scores.json", SENTENCE),
    ],
)
def test_what_is_promised_is_what_the_command_keeps(command: str, sentence: str) -> None:
    before = f"sys.argv = {['skillweave', *command.split()]!r}"
    assert _program("press()", before=before).stderr.strip() == sentence


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_do_too(number: signal.Signals) -> None:
    _stopped(_program(f"press({int(number)})\ntime.sleep(20)"), number)


def test_a_second_control_c_ends_what_does_not_stop() -> None:
    body = "try: press()\nexcept KeyboardInterrupt: pass\npress()\nwhile True: time.sleep(1)"
    _stopped(_program(body, before="import skillweave.cli.start as start\nstart._GRACE = 0.0"))


def test_what_the_parent_ignores_stays_ignored() -> None:
    ran = _program("press(signal.SIGHUP)\nprint('went on')", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert (ran.returncode, ran.stdout) == (0, "went on\n")


def test_of_several_processes_one_says_it() -> None:
    ran = _program("press()", before="os.environ['RANK'] = '1'")
    assert (ran.returncode, ran.stderr) == (130, "")


@pytest.mark.parametrize("module", ["typer", "skillweave.progress", "skillweave.cli.packs"])
def test_while_modules_are_imported(module: str) -> None:
    code = (
        "import os, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "import runpy\nsys.argv = ['skillweave', '--version']\n"
        "runpy.run_module('skillweave', run_name='__main__', alter_sys=True)\n"
    )
    _stopped(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120))


def test_a_bug_in_a_terminal_of_a_stranger_keeps_its_traceback() -> None:
    ran = _program("raise RuntimeError('a bug')")
    assert ran.returncode == 1
    assert "Traceback (most recent call last)" in ran.stderr
    assert ran.stderr.endswith("RuntimeError: a bug\n")


# -- what else ends a command ----------------------------------------------------------------------------------------

MACHINE = [
    (MemoryError(), "there is not enough memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"), "not enough"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory"),
    (OSError(28, os.strerror(28), "/data/x"), "/data/x could not be read"),
    (PermissionError(13, os.strerror(13), "/data/x"), "/data/x: no permission to read it"),
    (OSError(36, os.strerror(36), "x" * 300), "is too long for a path"),
]


@pytest.mark.parametrize(("error", "message"), MACHINE, ids=[message for _, message in MACHINE])
def test_what_the_machine_refuses_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(skillweave.engine, "open_engine", broken)
    ran = run("generate", "x", "y")
    assert ran.code == 2
    assert message in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "x"), RuntimeError("x"), ValueError("x")])
def test_what_may_be_a_bug_comes_through(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(skillweave.engine, "open_engine", broken)
    with pytest.raises(type(error)):
        run("generate", "x", "y")


def test_a_pipe_that_is_cut_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "skillweave", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")
