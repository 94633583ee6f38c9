"""The playground in a real browser: every page is clicked through, and nothing leaves this machine.

Pictures of the pages are kept in the folder that the environment variable ``SKILLWEAVE_PICTURES`` names, else in the
temporary folder of the tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from helpers.browser import Browser, browser, needs_browser
from helpers.live_server import live
from helpers.small_server import SmallEngine, small_service
from helpers.weave_packs import random_pack
from skillweave.base import open_base
from skillweave.serve.app import create_app
from skillweave.serve.engine_service import EngineService
from skillweave.serve.open_service import open_service
from skillweave.serve.settings import ServeConfig
from skillweave.weave import Weave
from skillweave.weave.router import fit_router

pytestmark = [pytest.mark.slow, needs_browser]

KEY = "sw-0123456789abcdef"
BOX = "[...document.querySelectorAll('.sw-ask textarea')].find(one => one.offsetParent)"
IDLE = "[...document.querySelectorAll('.sw-ask .submit-button')].find(one => one.offsetParent)"
BUSY = "[...document.querySelectorAll('.sw-ask .stop-button')].find(one => one.offsetParent)"
ANSWERS = "[...document.querySelectorAll('.sw-chat .message.bot')].map(one => one.innerText.trim())"
EVIL = (
    "<script>window.hit=1</script> <img src=x onerror='window.hit=2'> [a](javascript:window.hit=3) "
    "![b](https://example.org/c.png) **bold** <iframe src='https://example.org'></iframe> <b>tag</b>"
)


@pytest.fixture(scope="module", autouse=True)
def with_gradio() -> None:
    pytest.importorskip("gradio", reason="the extra `ui` is not installed")


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("SKILLWEAVE_PICTURES")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def weave(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = open_base(str(micro_base), dtype="float32")
    packs = {
        name: random_pack(base.model, base.fingerprint, name=name, seed=seed)
        for seed, name in enumerate(("sums", "calls"))
    }
    prompts = {
        "sums": [f"{a}+{b}=" for a in range(10, 20) for b in range(3)],
        "calls": [f"CALL {letter * 3}({letter})" for letter in "abcdefghijklmnopqrstuvwxyz"],
    }
    return Weave.write(tmp_path_factory.mktemp("served") / "weave", base, packs, router=fit_router(base, prompts))


@contextmanager
def served(service: EngineService, key: str | None = None) -> Iterator[str]:
    settings = ServeConfig(ui=True)
    with live(create_app(service, settings, key, write_log=lambda _: None)) as url:
        yield url


def opened(tab: Browser, url: str, dark: bool = False) -> None:
    tab.open(f"{url}/ui/", width=1366, height=768, dark=dark)
    tab.wait_for(BOX)


def ask(tab: Browser, text: str) -> None:
    tab.click(BOX)
    tab.wait_for(f"document.activeElement === {BOX}")
    tab.write(text)
    tab.wait_for(f"{BOX}.value.length >= {len(text)}")
    tab.press("Enter")


def choose(tab: Browser, label: str, name: str) -> None:
    """Pick a pack in the list with this label."""
    tab.click(f"document.querySelector('input[role=combobox][aria-label={label}]')")
    tab.click(f"[...document.querySelectorAll('[role=option]')].find(one => one.innerText.includes('{name}'))")


def go(tab: Browser, page: str) -> None:
    tab.click(f"[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText === '{page}')")
    tab.wait_for(f"document.querySelector('button[role=tab][aria-selected=true]').innerText === '{page}'")
    time.sleep(0.3)  # the page before goes away


def check_quiet(tab: Browser, url: str) -> None:
    """Check that the console has no errors, and that nothing was asked of another machine."""
    assert tab.errors == []
    asked = [urlsplit(address) for address in tab.requests]
    assert {one.netloc for one in asked if one.scheme not in ("data", "blob")} == {urlsplit(url).netloc}


def fits(tab: Browser) -> bool:
    return bool(tab.evaluate("document.documentElement.scrollHeight <= innerHeight"))


def test_every_page_with_a_real_engine(tab: Browser, weave: Path, pictures: Path) -> None:
    service = open_service(str(weave), ServeConfig(max_tokens=200, pack_memory=10**6), dtype="float32")
    with served(service) as url:
        opened(tab, url)
        # a pack that a person picks
        choose(tab, "Pack", "sums")
        ask(tab, "12+1=")
        tab.wait_for(f"{ANSWERS}.length === 1 && document.querySelector('.sw-status').innerText.includes('tokens/s')")
        tab.wait_for(IDLE)
        assert tab.evaluate("document.querySelector('.sw-status').innerText").startswith("sums · ")
        assert tab.evaluate("document.querySelectorAll('.sw-score').length") == 0
        # the router, with its scores
        choose(tab, "Pack", "auto")
        ask(tab, "14+2=")
        tab.wait_for("document.querySelectorAll('.sw-score').length === 3")
        tab.wait_for(f"{IDLE} && {ANSWERS}.length === 2")
        shown = tab.evaluate("[...document.querySelectorAll('.sw-percent')].map(one => parseInt(one.innerText))")
        assert sum(shown) == pytest.approx(100, abs=2)
        assert fits(tab)
        tab.picture(pictures / "chat.png")
        # two packs
        go(tab, "Side by side")
        choose(tab, "Left", "sums")
        choose(tab, "Right", "calls")
        ask(tab, "CALL aaa(a)")
        lines = "[...document.querySelectorAll('.sw-pair .block.sw-status')].map(one => one.innerText)"
        tab.wait_for(f"{lines}.every(one => one.includes('tokens/s'))")
        tab.wait_for(IDLE)
        assert [line.split(" · ")[0] for line in tab.evaluate(lines)] == ["sums", "calls"]
        assert fits(tab)
        tab.picture(pictures / "side-by-side.png")
        # memory and live figures
        go(tab, "Packs")
        tab.wait_for("document.querySelectorAll('.sw-packs tbody tr').length === 2")
        table = tab.evaluate("document.querySelector('.sw-packs').innerText")
        assert all(word in table for word in ("sums", "calls", "memory"))
        tab.wait_for("document.querySelector('.sw-tiles').innerText.includes('median')")
        first = tab.evaluate("[...document.querySelectorAll('.sw-tile b')].at(-1).innerText")
        assert int(first) > 0
        assert tab.evaluate("document.querySelector('.sw-whole u') !== null") is False  # no limit in these settings
        assert fits(tab)
        tab.picture(pictures / "packs.png")
        check_quiet(tab, url)
        # in the dark
        opened(tab, url, dark=True)
        go(tab, "Packs")
        tab.wait_for("document.querySelectorAll('.sw-packs tbody tr').length === 2")
        assert tab.evaluate("document.body.classList.contains('dark')")
        tab.picture(pictures / "packs-dark.png")
        check_quiet(tab, url)


def test_the_answer_of_a_model_runs_nothing_and_loads_nothing(tab: Browser, pictures: Path) -> None:
    with served(small_service(SmallEngine(EVIL))) as url:
        opened(tab, url)
        ask(tab, EVIL)
        tab.wait_for(f"{IDLE} && {ANSWERS}.length === 1 && {ANSWERS}[0].includes('tag')")
        time.sleep(1)  # for what would run later
        assert tab.evaluate("window.hit") is None
        shown = tab.evaluate(f"{ANSWERS}[0]")
        assert "<script>window.hit=1</script>" in shown
        assert "<b>tag</b>" in shown
        inside = "[...document.querySelectorAll('.sw-chat .message')]"
        assert tab.evaluate(f"{inside}.flatMap(one => [...one.querySelectorAll('script, img, iframe')]).length") == 0
        assert tab.evaluate(f"{inside}.some(one => one.querySelector('a[href^=javascript]'))") is False
        assert tab.evaluate(f"{inside}.at(-1).querySelector('strong').innerText") == "bold"
        go(tab, "Side by side")
        ask(tab, "anything")
        both = "[...document.querySelectorAll('.block.sw-answer')].map(one => one.innerText)"
        tab.wait_for(f"{both}.every(one => one.includes('tag'))")
        assert tab.evaluate("document.querySelectorAll('.sw-answer :is(script, img, iframe)').length") == 0
        assert tab.evaluate("window.hit") is None
        tab.picture(pictures / "evil.png")
        check_quiet(tab, url)


def test_stop_and_leaving_end_the_work_of_the_engine(tab: Browser) -> None:
    engine = SmallEngine("x" * 900, pause=0.05)
    with served(small_service(engine)) as url:
        opened(tab, url)
        ask(tab, "a")
        tab.wait_for(f"{ANSWERS}[0]?.includes('xxx')")
        tab.click(BUSY)
        tab.wait_for(IDLE)
        wait_for_cancelled(engine, 1)
        assert "xxx" in tab.evaluate(f"{ANSWERS}[0]")
        ask(tab, "b")  # the conversation goes on
        tab.wait_for(f"{ANSWERS}[1]?.includes('xxx')")
        assert "xxx" in engine.requests[1].text
        tab.open("about:blank")
        wait_for_cancelled(engine, 2)


def wait_for_cancelled(engine: SmallEngine, count: int) -> None:
    until = time.monotonic() + 20
    while sum(one.cancelled for one in engine.generations) < count:
        assert time.monotonic() < until, "the engine still works for nobody"
        time.sleep(0.05)


def test_errors_are_told_and_the_question_is_kept(tab: Browser) -> None:
    engine = SmallEngine()
    engine.busy = 2.0
    with served(small_service(engine)) as url:
        opened(tab, url)
        ask(tab, "a question")
        tab.wait_for("document.querySelector('.sw-fault')?.innerText.includes('too many requests')")
        assert tab.evaluate(f"{BOX}.value") == "a question"
        check_quiet(tab, url)


def test_a_narrow_window_shows_all_tabs(tab: Browser, pictures: Path) -> None:
    with served(small_service()) as url:
        tab.open(f"{url}/ui/", width=420, height=800, dark=True)
        tab.wait_for(BOX)
        shown = "[...document.querySelectorAll('button[role=tab]')].filter(one => one.offsetParent)"
        tab.wait_for(f"{shown}.length >= 3")
        tab.picture(pictures / "narrow.png")
        check_quiet(tab, url)


def test_the_login(tab: Browser, pictures: Path) -> None:
    with served(small_service(), KEY) as url:
        tab.open(f"{url}/ui/", width=1366, height=768)
        tab.wait_for("document.activeElement?.id === 'key'")
        tab.picture(pictures / "login.png")
        tab.write("wrong")
        tab.press("Enter")
        tab.wait_for("document.getElementById('told').innerText.includes('not the key')")
        tab.errors.clear()  # the browser notes the status 401
        tab.evaluate("document.getElementById('key').select()")
        tab.write(KEY)
        tab.press("Enter")
        tab.wait_for(BOX)
        ask(tab, "sort")
        tab.wait_for(f"{ANSWERS}[0] === 'abc'")
        check_quiet(tab, url)
