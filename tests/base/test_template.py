"""Whatever a chat template does, it ends in bounded time and memory, with a message that names the template."""

from __future__ import annotations

import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import skillweave.base.template as template
from skillweave.base.chat import prompt_text, rendered
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer

HI = [{"role": "user", "content": "hi"}]
LOOPS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}hi",
    "{{ 9 ** 99999999 }}",
    "{% set n = namespace(x=3) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x > 1 }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{{ loop.index }}{% endfor %}{% endfor %}",
]
GROWS = [
    "{{ 'xxxxxxxxxx' * 999999999 * 9 }}",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{{ 'x' | center(99999999999) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '{:>99999999999}'.format(1) }}",
    "{{ messages | tojson(indent=99999999999) }}",
    "{% for i in range(99999) %}{% for j in range(9) %}{{ 'x' * 99999 }}{% endfor %}{% endfor %}",
]
WRONG = [
    ("{{ 1 // 0 }}", "line 1"),
    ("a\n{{ 'x' + 1 }}", "line 2"),
    ("\n\n{% if %}", "line 3"),
    ("{{ 'x' | nope }}", "line 1"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1"),
    ("{{ raise_exception('no') }}", "line 1"),
    ("{{ ''.__class__.__mro__ }}", "line 1"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", ""),
    ("{% if true %}" * 500 + "{% endif %}" * 500, ""),
]


def _tokenizer(text: str, folder: Path):
    tokenizer = micro_tokenizer(text)
    folder.mkdir(exist_ok=True)
    (folder / "chat_template.jinja").write_text(text)
    tokenizer.name_or_path = str(folder)
    return tokenizer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use low limits. They count processor time, so a busy machine makes no difference."""
    monkeypatch.setattr(template, "SECONDS", 0.3)
    monkeypatch.setattr(template, "MEMORY", 2**28)


@pytest.mark.parametrize("text", [*LOOPS, *GROWS], ids=lambda text: text[:40])
def test_it_does_not_run_without_end(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"chat_template\.jinja(, line \d+)?\).*(took more than|asked for more|wrote)"):
        rendered(_tokenizer(text, tmp_path), HI)


def test_a_long_conversation_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.001)
    tokenizer = micro_tokenizer("{% for m in messages %}{% for c in m['content'] %}{{ c }}{% endfor %}{% endfor %}")
    assert len(rendered(tokenizer, [{"role": "user", "content": "x" * 100}] * 500)) == 50_000


def _in_a_thread(text: str, folder: Path) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that renders a template, and the errors that it gets."""
    said: list[BaseException] = []

    def ask() -> None:
        try:
            rendered(_tokenizer(text, folder), HI)
        except UserError as error:
            said.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, said


@pytest.mark.parametrize("text", [LOOPS[0], *GROWS], ids=lambda text: text[:40])
def test_nor_in_another_thread(tmp_path: Path, text: str) -> None:
    thread, said = _in_a_thread(text, tmp_path)
    thread.join()
    assert any(part in str(said[0]) for part in ("took more than", "asked for more", "wrote"))


def test_a_rendering_in_another_thread_takes_no_memory_from_the_others(tmp_path: Path) -> None:
    thread, said = _in_a_thread(LOOPS[0], tmp_path)
    time.sleep(0.05)
    assert thread.is_alive()
    np.empty(2 * template.MEMORY, np.uint8)  # what a step of the engine asks for at the same moment
    assert thread.is_alive()
    thread.join()
    assert said


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[text[:30] for text, _ in WRONG])
def test_its_errors_name_file_and_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError, match=rf"chat_template\.jinja.*{line}"):
        rendered(_tokenizer(text, tmp_path), HI)


@pytest.mark.parametrize("text", ["", "fixed", "{# nothing #}"])
def test_one_that_writes_nothing_of_what_was_said_is_refused(text: str) -> None:
    tokenizer = micro_tokenizer(text)
    if text:
        with pytest.raises(UserError, match="does not write messages of the role 'user'"):
            prompt_text(tokenizer, HI)


@pytest.mark.parametrize("given", [5, ["x"], {"default": 3}, {"other": "x"}])
def test_one_that_is_no_text_is_refused(given: object) -> None:
    tokenizer = micro_tokenizer("x")
    tokenizer.chat_template = given
    with pytest.raises(UserError, match="chat template"):
        prompt_text(tokenizer, HI)


def test_a_good_one_writes_as_transformers_does_and_leaves_no_limit_behind(tmp_path: Path) -> None:

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    tokenizer = micro_tokenizer()
    expected = tokenizer.apply_chat_template(HI, tokenize=False, add_generation_prompt=True)
    assert rendered(tokenizer, HI) == expected
    with pytest.raises(UserError):
        rendered(_tokenizer(GROWS[0], tmp_path), HI)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
