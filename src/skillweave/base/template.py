"""Chat templates are programs of strangers: they run with a limit of time, of memory and of what they write.

transformers renders them in jinja's sandbox, which stops what they may reach, not how long or how large they grow.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateSyntaxError

from skillweave.errors import UserError
from skillweave.units import human_bytes

SECONDS = 5.0
"""Processor time that one rendering may take; a usual one takes a thousandth."""
MEMORY = 2**30
"""Bytes that the process may grow by while it renders."""
LONGEST = 2**24
"""Characters that a template may write: more than any model reads."""

_AGAIN = 0.25  # seconds: jinja catches errors in a few places, and is then told once more


class _TooLong(Exception):
    """The time of a rendering is over."""


def apply_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    to_answer: bool = False,
) -> str:
    """What the tokenizer's chat template makes of messages; ``to_answer``: to where the assistant writes.

    Raises :class:`UserError` where the template takes too long, too much memory, or writes too much, and whatever
    it raises itself where it refuses the messages.
    """
    try:
        with _limited():
            text = tokenizer.apply_chat_template(
                messages, tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=to_answer
            )
    except _TooLong as error:
        raise UserError(
            f"{place_of(tokenizer, error)} took more than {SECONDS:g} seconds on one conversation, and was stopped: "
            "it may loop without end. Use another template"
        ) from None
    except MemoryError as error:
        raise UserError(
            f"{place_of(tokenizer, error)} asked for more than {human_bytes(MEMORY)} of memory for one conversation, "
            "and was stopped. Use another template"
        ) from None
    except (SyntaxError, AssertionError, OSError) as error:  # of compiling what jinja makes of a strange template
        raise UserError(f"{place_of(tokenizer, error)} cannot be used ({type(error).__name__}: {error})") from error
    if not isinstance(text, str) or len(text) > LONGEST:
        wrote = f"{len(text):,} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise UserError(
            f"{place_of(tokenizer)} wrote {wrote} for one conversation, and at most {LONGEST:,} are read: use another "
            "template"
        )
    return text


def place_of(tokenizer: Any, error: BaseException | None = None) -> str:
    """``"the chat template FILE, line N"``, as far as it is known where the template stands and where it failed."""
    named = str(getattr(tokenizer, "name_or_path", "") or "")
    files = [Path(named) / name for name in ("chat_template.jinja", "tokenizer_config.json")] if named else []
    file = next((file for file in files if os.path.isfile(file)), None)
    line = _line_of(error) if error is not None else None
    known = ([str(file)] if file else []) + ([f"line {line}"] if line else [])
    return called(tokenizer) + (f" ({', '.join(known)})" if known else "")


def called(tokenizer: Any) -> str:
    """What a message calls the chat template: the base's, or that of what the tokenizer travels with."""
    owner = getattr(tokenizer, "travels_with", None)
    return f"the chat template of {owner}" if owner else "the base's chat template"


def _line_of(error: BaseException) -> int | None:
    """The line of the template: jinja shows its lines in the traceback."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename in ("<template>", "<unknown>")), None)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Within, a rendering that takes too long raises :class:`_TooLong`, and one that grows too large MemoryError."""
    with _memory(), _time() if threading.current_thread() is threading.main_thread() else _time_of_a_thread():
        yield


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = _size() + MEMORY
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    if not math.isfinite(room) or any(limit <= room for limit in known):  # what the system gives is less already
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(room), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _size() -> float:
    """Bytes of addresses that the process has taken; infinity where the system does not say."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return math.inf
    try:
        return int(os.read(descriptor, 64).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _time() -> Iterator[None]:
    """By a timer of the processor time of this process, whose signal Python also minds within a long product."""
    running = True

    def over(number: int, frame: FrameType | None) -> None:
        if running:
            raise _TooLong

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, _AGAIN)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _time_of_a_thread() -> Iterator[None]:
    """Signals reach the main thread alone: in another one each call and each line looks at the clock."""
    ends = time.thread_time() + SECONDS
    before = sys.gettrace()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > ends:
            raise _TooLong
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
