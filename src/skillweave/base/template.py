"""Render templates with limits on time, memory and output, because they are programs that anyone may have written.

transformers renders them in jinja's sandbox, which limits what they can access, but not how long they run or how much
memory they take.
"""

from __future__ import annotations

import contextlib
import itertools
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

SECONDS = 2.0
"""Processor time that one rendering may take. Usual templates take a hundredth of it for a hundred messages."""
_MORE_SECONDS, _MOST_SECONDS = 0.01, 5.0
"""Time that it may take longer for each message and tool, and at most."""
MEMORY = 2**30
"""Bytes that the process may grow by during a rendering."""
LONGEST = 2**24
"""Characters that a template may write: more than any model can read."""
_SHARED = 4
"""How many times :data:`MEMORY` the system lets a process with other threads grow. Its limit hits whoever asks next, so
another thread must not come near it; a rendering is stopped before, between two of its lines."""

_LINES = 32
"""Lines of a rendering between two looks at the memory."""

_one_at_a_time = threading.Lock()
"""The limit on memory is one of the process: two renderings at once would restore each other's limits."""
_AGAIN = 0.25  # seconds between further signals: jinja catches errors in a few places, so one may not be enough


class TemplateError(UserError):
    """A chat template that cannot be used, or not for these messages.

    ``public`` is the message for those who must not learn which files there are, such as clients of a server.
    """

    def __init__(self, tokenizer: Any, what: str, error: BaseException | None = None) -> None:
        super().__init__(f"{place_of(tokenizer, error)} {what}")
        self.public = f"the chat template {what}"


class TooLong(Exception):
    """A rendering took too long."""


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def apply_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    to_answer: bool = False,
) -> str:
    """Return the text that the tokenizer's chat template writes for messages.

    With ``to_answer``, the text ends where the assistant's answer begins. Raises :class:`UserError` if the template
    takes too long or too much memory, or writes too much. If the template refuses the messages, its own error passes
    through.
    """
    seconds = min(SECONDS + _MORE_SECONDS * (len(messages) + len(tools or ())), _MOST_SECONDS)
    try:
        with limited(seconds):
            text = tokenizer.apply_chat_template(
                messages, tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=to_answer
            )
    except TooLong as error:
        raise TemplateError(
            tokenizer,
            f"took more than {seconds:.1f} seconds on one conversation, and was stopped: it may loop without end. Use "
            f"another template, or fewer messages (there are {len(messages):,})",
            error,
        ) from None
    except MemoryError as error:
        raise TemplateError(
            tokenizer,
            f"asked for more than {human_bytes(MEMORY)} of memory for one conversation, and was stopped. Use another "
            "template",
            error,
        ) from None
    except (SyntaxError, AssertionError, OSError) as error:  # from compiling jinja's code for an unusual template
        raise TemplateError(tokenizer, f"cannot be used ({type(error).__name__}: {error})", error) from error
    if not isinstance(text, str) or len(text) > LONGEST:
        wrote = f"{len(text):,} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise TemplateError(
            tokenizer, f"wrote {wrote} for one conversation, but the limit is {LONGEST:,}: use another template"
        )
    return text


def place_of(tokenizer: Any, error: BaseException | None = None) -> str:
    """Return :func:`template_name`, with the file of the template and the line of the error if they are known."""
    named = str(getattr(tokenizer, "name_or_path", "") or "")
    files = [Path(named) / name for name in ("chat_template.jinja", "tokenizer_config.json")] if named else []
    file = next((file for file in files if os.path.isfile(file)), None)
    line = _line_of(error) if error is not None else None
    known = ([str(file)] if file else []) + ([f"line {line}"] if line else [])
    return template_name(tokenizer) + (f" ({', '.join(known)})" if known else "")


def template_name(tokenizer: Any) -> str:
    """Return how messages name the chat template: the base's, or that of the artefact that brings the tokenizer."""
    owner = getattr(tokenizer, "travels_with", None)
    return f"the chat template of {owner}" if owner else "the base's chat template"


def _line_of(error: BaseException) -> int | None:
    """Return the line of the template in which an error was raised; jinja puts it in the traceback."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename in ("<template>", "<unknown>")), None)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside this context, a rendering that takes too long raises :class:`TooLong`; one too large, MemoryError."""
    if threading.current_thread() is threading.main_thread():
        with _one_at_a_time, _memory(MEMORY), _time(seconds):
            yield
    else:
        with _one_at_a_time, _memory(_SHARED * MEMORY), _watched_lines(seconds):
            yield


@contextlib.contextmanager
def _memory(growth: int) -> Iterator[None]:
    """Limit the address space of the process to so many bytes more than it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = _size() + growth
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    if not math.isfinite(room) or any(limit <= room for limit in known):  # the system's own limit is lower
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(room), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _size() -> float:
    """Return the bytes of the process's address space; infinity if the system does not tell."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return math.inf
    try:
        return int(os.read(descriptor, 64).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Limit the processor time by a timer, whose signal interrupts long computations of Python too."""
    running = True

    def over(number: int, frame: FrameType | None) -> None:
        if running:
            raise TooLong

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _watched_lines(seconds: float) -> Iterator[None]:
    """Limit processor time and memory outside the main thread, where no signals arrive: check them while lines run.

    The time is checked at each line, and the memory, which takes longer to ask for, at some. What other threads take
    meanwhile counts too.
    """
    ends, largest = time.thread_time() + seconds, _size() + MEMORY
    before, lines = sys.gettrace(), itertools.count()

    def check(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > ends:
            raise TooLong
        if next(lines) % _LINES == 0 and _size() > largest:
            raise MemoryError
        return check

    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)
