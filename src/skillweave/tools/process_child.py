"""The program that ``runner: process`` starts: it locks itself in, then runs the Python texts that it receives.

It is started as ``python -I -S -B process_child.py IN OUT``. It locks itself in before it runs anything, so it is one
file and imports only the standard library. For each JSON line that it reads from the pipe IN, it writes one to the pipe
OUT, with the token of the request. Code that runs here shares the process with this loop, and with effort it can write
anything to OUT. That changes only the values that it returns: nothing here knows which values are right, because
:mod:`skillweave.tasks.verifiers.code_run` compares them in the parent process.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import importlib
import json
import os
import platform
import resource
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

_PLAIN = (type(None), bool, str)
_DEEP = 200  # most levels of lists within lists in a value that is sent
_SAME_HASH = 500  # most keys with the same hash: looking up all of them takes quadratic time
REPLY = 4 * 2**20
"""Most bytes of one reply."""


class TooLarge(ValueError):
    """A value exceeds the limits of what may be sent."""


class Room:
    """The number of items and characters that may still be sent of a value, counted along its tree."""

    def __init__(self, items: float = float("inf"), characters: float = float("inf")) -> None:
        self.items, self.characters = items, characters
        self._message = f"a value of more than {items:,} items, {characters:,} characters or {_DEEP} levels"

    def take(self, characters: int = 0) -> None:
        """Subtract one item with this many characters. Raises :class:`TooLarge` if there is no room."""
        self.items -= 1
        self.characters -= characters
        if self.items < 0 or self.characters < 0:
            self.refuse()

    def refuse(self) -> None:
        """Raise :class:`TooLarge`."""
        raise TooLarge(self._message)


class Opaque:
    """The stand-in for a value that is not plain data: a function, a class, an object."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any, depth: int = _DEEP, room: Room | None = None) -> Any:
    """``value`` as JSON that keeps its types. Anything that is not plain data becomes ``["object", NAME]``.

    A value of a subclass of a plain type is written as that type; it is read with the type's methods, not the
    subclass's. Raises :class:`TooLarge` for a value that is nested too deeply or needs more than ``room``.
    """
    room = Room() if room is None else room
    if depth == 0:
        room.refuse()
    kind = type(value)
    if kind is not str and kind in _PLAIN:
        room.take()
        return value
    if isinstance(value, int):
        room.take(int.bit_length(value) // 4)
        return ["int", int.__format__(value, "x")]
    if isinstance(value, float):
        room.take()
        return ["float", float.__repr__(value)]
    if isinstance(value, str):
        room.take(str.__len__(value))
        return str.__str__(value)
    if isinstance(value, complex):
        room.take()
        return ["complex", [float.__repr__(value.real), float.__repr__(value.imag)]]
    if isinstance(value, bytes | bytearray):
        room.take(2 * len(value))
        return ["bytes", bytes(value).hex()]
    room.take()
    for plain in (list, tuple, set, frozenset):
        if isinstance(value, plain):
            own: Any = plain.__iter__
            return [plain.__name__, [encode(item, depth - 1, room) for item in own(value)]]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["dict", [[encode(key, depth - 1, room), encode(item, depth - 1, room)] for key, item in pairs]]
    if kind in (range, type({}.keys()), type({}.values()), type({}.items())):
        return ["list", [encode(item, depth - 1, room) for item in value]]
    if kind is _library("decimal", "Decimal") or kind is _library("fractions", "Fraction"):
        text = str(value)
        room.take(len(text))
        return [kind.__name__, text]
    if kind in [_library("datetime", name) for name in ("date", "time", "datetime")]:
        return [kind.__name__, value.isoformat()]
    if kind is _library("datetime", "timedelta"):
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    return ["object", kind.__name__[:200] if isinstance(kind.__name__, str) else "object"]


def _library(module: str, name: str) -> Any:
    """A class of a module if that module is already imported: few programs need it, and importing it takes time."""
    return getattr(sys.modules.get(module), name, _library)


def spread(keys: list[Any]) -> list[Any]:
    """The keys of a dict or set that is read. Raises :class:`TooLarge` if too many of them have the same hash."""
    if len(keys) > _SAME_HASH:
        seen: dict[int, int] = {}
        for key in keys:
            seen[hash(key)] = seen.get(hash(key), 0) + 1
        if max(seen.values()) > _SAME_HASH:
            raise TooLarge(f"a value with more than {_SAME_HASH} keys of one hash")
    return keys


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


_READ: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "bytes": bytes.fromhex,
    "list": lambda items: [decode(item) for item in items],
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: set(spread([decode(item) for item in items])),
    "frozenset": lambda items: frozenset(spread([decode(item) for item in items])),
    "dict": lambda items: dict(
        zip(spread([decode(key) for key, _ in items]), [decode(value) for _, value in items], strict=True)
    ),
    "Decimal": lambda text: _class("decimal", "Decimal")(text),
    "Fraction": lambda text: _class("fractions", "Fraction")(*map(int, text.split("/"))),  # no exponents
    "date": lambda text: _class("datetime", "date").fromisoformat(text),
    "time": lambda text: _class("datetime", "time").fromisoformat(text),
    "datetime": lambda text: _class("datetime", "datetime").fromisoformat(text),
    "timedelta": lambda parts: _class("datetime", "timedelta")(*parts),
    "object": lambda kind: Opaque(str(kind)),
}


def decode(written: Any) -> Any:
    """The value that :func:`encode` wrote. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for other JSON."""
    if isinstance(written, list):
        kind, content = written
        return _READ[kind](content)
    if type(written) in _PLAIN:
        return written
    raise ValueError(f"a {type(written).__name__} was not written by encode()")


# --- the jail -------------------------------------------------------------------------------------------------------

_NEWNET, _NEWIPC, _NEWUSER = 0x40000000, 0x08000000, 0x10000000
_NO_NEW_PRIVS, _SECCOMP, _PDEATHSIG = 38, 22, 1
_NOBODY = 65534
# Numbers of system calls that reach other processes, the network or the kernel's settings.
_DENIED = {
    "x86_64": (
        0xC000003E,
        (
            # socket socketpair fork vfork kill tkill tgkill ptrace process_vm_readv/writev pidfd_open pidfd_send_signal
            *(41, 53, 57, 58, 62, 200, 234, 101, 310, 311, 434, 424),
            # execve execveat mount umount2 pivot_root chroot unshare setns bpf perf_event_open
            *(59, 322, 165, 166, 155, 161, 272, 308, 321, 298),
            # keyctl add_key request_key io_uring_* shmget msgget semget mq_open userfaultfd memfd_create
            *(250, 248, 249, 425, 426, 427, 29, 68, 64, 240, 323, 319),
            # init_module finit_module kexec_load reboot setpriority sched_setaffinity sched_setscheduler
            *(175, 313, 246, 169, 141, 203, 144),
            # setpgid setsid prlimit64 chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
            *(109, 112, 302, 90, 91, 268, 452, 92, 93, 94, 260),
            # utime utimes utimensat futimesat setxattr lsetxattr fsetxattr
            *(132, 235, 280, 261, 188, 189, 190),
        ),
        56,
        435,
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(198, 199, 129, 130, 131, 117, 270, 271, 434, 424),
            *(221, 281, 40, 39, 41, 51, 97, 268, 280, 241),
            *(219, 217, 218, 425, 426, 427, 194, 186, 190, 180, 282, 279),
            *(105, 273, 104, 142, 140, 122, 119),
            *(154, 157, 261, 52, 53, 452, 55, 54),
            *(88, 5, 6, 7),
        ),
        220,
        435,
    ),
}
_CLONE_THREAD = 0x00010000


def _syscall(libc: Any, number: int, *arguments: Any) -> int:
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return int(result)


def lock_in(memory: int, seconds: float) -> dict[str, bool]:
    """Isolate this process, and return which kinds of isolation succeeded.

    - ``network``: it has a network namespace of its own, or no sockets at all (seccomp)
    - ``files``: Landlock lets it read Python's own library and nothing else
    - ``calls``: a seccomp filter refuses system calls that reach other processes
    - ``user``: it does not run as root
    """
    walls = dict.fromkeys(("network", "files", "calls", "user"), False)
    _limit(_memory_in_use() + memory, seconds)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        root = os.geteuid() == 0
        spaces = _NEWNET | _NEWIPC
        walls["network"] = libc.unshare(spaces if root else spaces | _NEWUSER) == 0
        walls["user"] = not root or _become_nobody()
        header = struct.pack("=Ii", 0x20080522, 0)
        if libc.capset(header, bytes(24)) != 0:
            raise OSError(ctypes.get_errno(), "the capabilities could not be given up")
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PDEATHSIG, 9, 0, 0, 0)
        walls["files"] = _only_read_python(libc)
        walls["calls"] = _filter_calls(libc)
        walls["network"] |= walls["calls"]
    if not walls["calls"]:  # coarser than the filter: it also forbids threads
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return walls


def _become_nobody() -> bool:
    """Become the user ``nobody`` and return True; stay root if ``nobody`` cannot read Python's library."""
    os.setgroups([])
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    readable = os.access(os.path.join(os.path.dirname(os.__file__), "json"), os.R_OK | os.X_OK, effective_ids=True)
    os.seteuid(0)
    os.setegid(0)
    if readable:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    return readable


def _only_read_python(libc: Any) -> bool:
    """Whether Landlock (kernel 5.13) now denies all files except Python's library and the shared libraries."""
    abi = _syscall(libc, 444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if abi < 1:
        return False
    read_file, read_folder = 4, 8
    rights = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1
    if abi >= 5:
        rights |= 1 << 15
    sockets = 3 if abi >= 4 else 0
    scoped = 3 if abi >= 6 else 0
    attribute = struct.pack("=QQQ", rights, sockets, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _syscall(libc, 444, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint(0))
    if rules < 0:
        return False
    folders = {
        *sys.path,  # with -I these are the standard library and its compiled part
        *(os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix) if prefix != "/usr"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"),
    }
    for path in sorted(folders):
        if path and os.path.exists(path):
            place = os.open(path, os.O_PATH)
            allowed = read_file | (read_folder if os.path.isdir(path) else 0)
            rule = struct.pack("=Qi", allowed, place)
            _syscall(libc, 445, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
            os.close(place)
    done = _syscall(libc, 446, ctypes.c_int(rules), ctypes.c_uint(0)) == 0
    os.close(rules)
    return done


def _memory_in_use() -> int:
    """Bytes of this process's address space; 0 if the system does not tell."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(memory: int, seconds: float) -> None:
    """Set limits of the kernel: address space in bytes, processor time, no bytes in files, few open files."""
    for name, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + 2),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (bound, bound))


def _filter_calls(libc: Any) -> bool:
    """Whether a seccomp filter now refuses (EPERM) every call in ``_DENIED`` and every new process."""
    if platform.machine() not in _DENIED:
        return False
    architecture, denied, clone, clone3 = _DENIED[platform.machine()]
    load, equal, above, test, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, unknown, allow = 0x00050001, 0x00050026, 0x7FFF0000
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, 0x80000000),
        (load, 0, 0, 0),
        (above, 0, 1, 0x40000000),  # the x32 numbers of the same calls
        (give, 0, 0, refuse),
        (equal, 0, 1, clone3),
        (give, 0, 0, unknown),  # the C library then uses clone, whose flags can be checked
        (equal, 0, 4, clone),
        (load, 0, 0, 16),
        (test, 1, 0, _CLONE_THREAD),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    ]
    for number in denied:
        lines += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    lines.append((give, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    return bool(libc.prctl(_SECCOMP, 2, program, 0, 0) == 0)


# --- the loop -------------------------------------------------------------------------------------------------------


class _Ended(BaseException):
    """The parent closed the pipe."""


class Loop:
    """Runs the texts that are received in one module, whose names persist from one text to the next."""

    def __init__(self, reading: int, writing: int) -> None:
        self._in = os.fdopen(reading, "rb")
        self._out = os.fdopen(writing, "wb")
        self._stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stdout = self._stdout
        self._module = types.ModuleType("answer")
        builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # Python started without -S has these
        self.token = ""
        self.room: tuple[int, int] = (0, 0)

    def send(self, message: dict[str, Any]) -> None:
        text = json.dumps({**message, "token": self.token}, ensure_ascii=False)
        data = text.encode("utf-8", "surrogatepass")
        if len(data) >= REPLY:
            message_too_large = f"a value of more than {REPLY:,} bytes as JSON"
            if "ask" in message:
                raise TooLarge(message_too_large)
            stand_in = ["object", message_too_large]
            data = json.dumps({"value": stand_in, "token": self.token}).encode()
        self._out.write(data + b"\n")
        self._out.flush()

    def receive(self) -> Any:
        line = self._in.readline()
        if not line:
            raise _Ended
        return json.loads(line)

    def ask(self, *arguments: Any) -> Any:
        """The parent's answer to a question. Raises the exception that the parent names."""
        question = encode(arguments, room=Room(*self.room))  # TooLarge is a ValueError for the calling code
        self.send({"ask": question})
        reply = self.receive()
        self.token = reply["token"]
        if "raise" in reply:
            kind, text = reply["raise"]
            raise getattr(builtins, kind)(text)
        return decode(reply["value"])

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one text. Returns the value of its last expression, or its exception."""
        space = self._module.__dict__
        if request["name"] is not None:
            self._module.__name__ = request["name"]
            sys.modules[request["name"]] = self._module
        if request["host"]:
            space["_sw_host"] = self.ask
        try:
            space.update(decode(request["inputs"]))
            tree = ast.parse(request["source"], "<program>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<program>", "exec"), space)
            value = None
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "<program>", "eval"), space)
            try:
                return {"value": encode(value, room=Room(*self.room))}
            except TooLarge as error:
                return {"value": ["object", str(error)]}
        except _Ended:
            raise
        except BaseException as error:  # also SystemExit, which counts as an error
            return {"error": describe(error)}
        finally:
            for stream in (sys.stdout, self._stdout):
                with contextlib.suppress(BaseException):
                    stream.flush()

    def serve(self) -> None:
        """Answer requests until the parent closes the pipe."""
        while True:
            request = self.receive()
            self.token = request["token"]
            self.send(self.run(request))


def describe(error: BaseException) -> str:
    """An exception as ``"ZeroDivisionError: division by zero"``; only its type if its message raises."""
    try:
        whole = str(error)
        text = whole[:2000]
        if len(whole) > 2000:
            text += f"... ({len(whole) - 2000:,} more characters were cut off)"
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Isolate this process, report which kinds of isolation succeeded, and serve."""
    loop = Loop(int(sys.argv[1]), int(sys.argv[2]))
    settings = loop.receive()
    loop.token = settings["token"]
    loop.room = (settings["items"], settings["characters"])
    loop.send({"walls": lock_in(settings["memory"], settings["seconds"])})
    with contextlib.suppress(_Ended):
        loop.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
