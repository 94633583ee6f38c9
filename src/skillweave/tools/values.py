"""Take values out of the sandbox: they are flattened inside it, within limits, and read here.

A list that holds one text a thousand times is small inside the interpreter, and large as soon as it is written out. A
tuple that holds the same tuple twice, fifty levels deep, takes forever to hash. So a value never leaves as it is. Code
of ours (``_SETUP``), under names that the judged code cannot mention, walks the value inside the interpreter, within
the interpreter's limits, and returns a flat list of plain items of bounded size. :func:`read_value` rebuilds the tree.

The names are found in the text of the code (:func:`~skillweave.tools.source.check_names`). Code that puts a name
together at run time could still mention them through ``exec``, ``eval`` and ``locals``, so these are replaced: ``eval``
takes one text, sees only global names, and checks the text; the others refuse. Code cannot get the replaced ones back:
there is no ``del``, and the other statement that deletes a name, ``except ... as eval``, is refused by its text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pydantic_monty as monty

from skillweave.tools.process_child import Opaque, TooLarge, spread

LEVELS = 100
"""Most levels of lists within lists in a value that comes out."""

_SETUP = """
import collections as _sb_c, datetime as _sb_d, decimal as _sb_m
_sb_type, _sb_is, _sb_len, _sb_repr, _sb_hex, _sb_map, _sb_sum = type, isinstance, len, repr, hex, map, sum
_sb_list, _sb_tuple, _sb_dict, _sb_set, _sb_frozenset = list, tuple, dict, set, frozenset
_sb_text, _sb_bytes, _sb_int, _sb_float, _sb_bool = str, bytes, int, float, bool
_sb_min, _sb_max, _sb_Error = min, max, ValueError
_sb_deque, _sb_Decimal = _sb_c.deque, _sb_m.Decimal
_sb_eval, _sb_Refused = eval, NameError

def eval(_sb_code):
    if _sb_type(_sb_code) is not _sb_text or not _sb_code.isascii() or '_sb_' in _sb_code:
        raise _sb_Refused("eval takes one ASCII text here, without the sandbox's own names")
    return _sb_eval(_sb_code)

def exec(*_sb_rest):
    raise _sb_Refused('exec is not available here')

def locals():
    raise _sb_Refused('locals is not available here')
_sb_small = (type(None), bool, float, complex, _sb_d.date, _sb_d.time, _sb_d.datetime, _sb_d.timedelta)

def _sb_size(x, room):
    t = _sb_type(x)
    if t is _sb_int:
        if -18446744073709551616 < x < 18446744073709551616: return 0
        most = 1 << 4 * room
        return _sb_len(_sb_hex(x)) if -most < x < most else room + 1
    if t is _sb_text or t is _sb_bytes: return _sb_len(x)
    if t in _sb_small: return 0
    if t is _sb_Decimal: return _sb_len(_sb_text(x))
    return -1

def _sb_kind(x):
    if _sb_is(x, _sb_tuple): return 'tuple'
    if _sb_is(x, _sb_list) or _sb_type(x) is _sb_deque: return 'list'
    if _sb_is(x, _sb_dict): return 'dict'
    if _sb_is(x, _sb_set): return 'set'
    if _sb_is(x, _sb_frozenset): return 'frozenset'
    return None

def _sb_flat(x):
    kinds = {_sb_type(item) for item in x}
    if _sb_len(kinds) != 1: return -1
    if _sb_int in kinds and -18446744073709551616 < _sb_min(x) and _sb_max(x) < 18446744073709551616: return 0
    if _sb_float in kinds or _sb_bool in kinds: return 0
    if _sb_text in kinds: return _sb_sum(_sb_map(_sb_len, x))
    return -1

def _sb_take(value, items, characters, levels):
    out, todo, depth = [], [value], [0]
    while todo:
        x, level = todo.pop(), depth.pop()
        items -= 1
        size = _sb_size(x, characters)
        if size >= 0:
            characters -= size
            if items < 0 or characters < 0: return None
            out.append(0)
            out.append(x)
            continue
        kind = _sb_kind(x)
        if kind is None:
            out.append('object')
            out.append(_sb_text(_sb_type(x))[:200])
            continue
        count = _sb_len(x) * (2 if kind == 'dict' else 1)
        if level >= levels or count > items: return None
        out.append(kind)
        out.append(count)
        children = []
        if kind == 'dict':
            for key, item in x.items():
                children.append(key)
                children.append(item)
        else: children.extend(x)
        size = _sb_flat(children) if count > 8 else -1
        if size >= 0:
            items -= count
            characters -= size
            if characters < 0: return None
            out.append(1)
            out.append(children)
            continue
        todo.extend(children[::-1])
        depth.extend([level + 1] * count)
    return out

def _sb_show(value, room):
    if value is None: return ''
    out, todo = [], [(False, value, 0)]
    while todo and room > 0:
        written, x, level = todo.pop()
        t = _sb_type(x)
        kind = None if written or t not in (_sb_list, _sb_tuple, _sb_dict, _sb_set, _sb_frozenset) else _sb_kind(x)
        if written: piece = x
        elif kind is not None and level >= 50: piece = '...'
        elif kind is None: piece = _sb_repr(x[:room]) if t is _sb_text or t is _sb_bytes else _sb_repr(x)
        else:
            first, last = {'list': ('[', ']'), 'tuple': ('(', ')'), 'dict': ('{', '}'), 'set': ('{', '}'),
                           'frozenset': ('frozenset({', '})')}[kind]
            if kind == 'tuple' and _sb_len(x) == 1: last = ',)'
            if not x and kind in ('set', 'frozenset'): first, last = kind + '(', ')'
            parts, left = [], room
            for item in x:
                if left < 0: break
                left -= 3
                if parts: parts.append((True, ', ', 0))
                parts.append((False, item, level + 1))
                if kind == 'dict':
                    parts.append((True, ': ', 0))
                    parts.append((False, x[item], level + 1))
            todo.append((True, last, 0))
            todo.extend(parts[::-1])
            piece = first
        out.append(piece[:room])
        room -= _sb_len(piece)
    return ''.join(out)
"""

_HOST = """
def _sw_host(*arguments):
    taken = _sb_take(arguments, {items}, {characters}, {levels})
    if taken is None: raise _sb_Error('{refusal}')
    return _sb_host(taken)
"""

KEPT = "_sb_value"
"""The name of the last expression's value inside the sandbox."""


def prepare(session: Any, *, items: int = 0, characters: int = 0) -> None:
    """Define in a new session the functions that flatten values, and with ``items`` also ``_sw_host``."""
    refusal = f"the program is asked with {too_large(items, characters).kind}"
    host = _HOST.format(items=items, characters=characters, levels=LEVELS, refusal=refusal) if items else ""
    session.feed_run(_SETUP + host + f"\n{KEPT} = None")


def drive(session: Any, code: str, **settings: Any) -> None:
    """Run code to its end. Its value is not converted, because a hostile value could take forever to convert."""
    at = session.feed_start(code, **settings)
    while not isinstance(at, monty.MontyComplete):
        at = at.resume_auto()


def take(session: Any, items: int, characters: int) -> Any:
    """The last value, or an :class:`Opaque` if it has more items, characters or levels than allowed."""
    code = f"_sb_out, {KEPT} = _sb_take({KEPT}, {items}, {characters}, {LEVELS}), None\n_sb_out"
    return read_value(session.feed_run(code), items, characters)


def show(session: Any, room: int) -> str:
    """The first ``room`` characters of the last value's ``repr``; empty for None."""
    return str(session.feed_run(f"_sb_out, {KEPT} = _sb_show({KEPT}, {room}), None\n_sb_out"))


def too_large(items: int, characters: int) -> Opaque:
    """The stand-in for a value that exceeds the limits."""
    return Opaque(f"a value of more than {items:,} items, {characters:,} characters or {LEVELS} levels")


def read_value(taken: list[Any] | None, items: int, characters: int) -> Any:
    """The value that ``_sb_take`` flattened, as a tree in which nothing is shared; for None a stand-in."""
    if taken is None:
        return too_large(items, characters)
    try:
        return _read(taken)
    except TooLarge as problem:
        return Opaque(str(problem))


def _read(taken: list[Any]) -> Any:
    """The tree. Each node is two items, its kind and its content, followed by the nodes inside it."""
    at = 0

    def node() -> Any:
        nonlocal at
        kind, content = taken[at], taken[at + 1]
        at += 2
        if kind == 0:
            return content
        if kind == "object":
            return Opaque(content.removeprefix("<class '").removesuffix("'>"))
        if content and taken[at] == 1:  # all items are in one list
            items = taken[at + 1]
            at += 2
        else:
            items = [node() for _ in range(content)]
        if kind == "dict":
            return dict(zip(spread(items[::2]), items[1::2], strict=True))
        return _READ[kind](items)

    return node()


_READ: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": lambda items: set(spread(items)),
    "frozenset": lambda items: frozenset(spread(items)),
}


class ByteBudget:
    """A count of bytes in use, shared by threads, that never exceeds ``most``."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._lock = threading.RLock()

    def take(self, count: int) -> bool:
        """Add these bytes and return True; if they are too many, add nothing and return False."""
        with self._lock:
            if self.bytes + count > self.most:
                return False
            self.bytes += count
            return True

    def give_back(self, count: int) -> None:
        """Subtract these bytes."""
        with self._lock:
            self.bytes -= count
