"""Debian's Chromium without a window, driven over a pipe by its DevTools protocol: keys, pictures, the console."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")

_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
]
_LONGEST_SECONDS = 60
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Home": 36, "End": 35}


class Browser:
    """One tab of a running Chromium.

    - ``errors``: the warnings and errors of the console since the page was opened
    - ``requests``: the addresses that the tab has asked for since the page was opened
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._last = 0
        self._pending = b""
        self._session: str | None = None
        self._events: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(
        self,
        page: Path | str,
        fragment: str = "",
        *,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        script: bool = True,
    ) -> None:
        """Open a file or an address at ``#fragment``. ``script``: whether scripts run."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        self._navigate("about:blank")  # so that a change of the fragment alone loads the page as well
        self.errors.clear()
        self.requests.clear()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._navigate(address + (f"#{fragment}" if fragment else ""))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """The value of a JavaScript expression, as soon as it is one that counts as true; True for an element."""
        until = time.monotonic() + seconds
        while not (value := self.evaluate(f"(found => found instanceof Node || found)({expression})")):
            assert time.monotonic() < until, f"not true within {seconds} s: {expression}"
            time.sleep(0.05)
        return value

    def click(self, expression: str) -> None:
        """Click, with the mouse, into the middle of the element that a JavaScript expression gives.

        It waits until the element stays in its place and nothing lies above it.
        """
        look = (
            "(one => { if (!one) return null; one.scrollIntoViewIfNeeded(); const box = one.getBoundingClientRect();"
            "const x = box.x + box.width / 2, y = box.y + box.height / 2, top = document.elementFromPoint(x, y);"
            f"return one.contains(top) || top?.contains(one) ? {{x, y}} : null }})({expression})"
        )
        where = self.wait_for(look)
        while time.sleep(0.15) or (later := self.wait_for(look)) != where:
            where = later
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def write(self, text: str) -> None:
        """Put a text into the field that has the focus, as if it were typed."""
        self._call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key of the keyboard."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        if key == "Enter":
            common["text"] = "\r"
        self._call("Input.dispatchKeyEvent", type="keyDown", **common)
        self._call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, file: Path) -> None:
        """Write a PNG of what the window shows."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _navigate(self, address: str) -> None:
        self._events.clear()
        self._call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._receive()).get("id") != self._last:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; events are noted."""
        until = time.monotonic() + _LONGEST_SECONDS
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._back], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium said nothing for {_LONGEST_SECONDS} s"
            data = os.read(self._back, 1 << 20)
            assert data, "Chromium has ended"
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
            self.errors.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("warning", "error", "assert"):
            self.errors.append(str(parameters["args"]))
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with a new profile, and end it with all its processes."""
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from descriptor 3 and writes to descriptor 4.
        redirect = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{back_write}', "bash"]
        process = subprocess.Popen(
            [*redirect, str(CHROMIUM), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, back_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(back_write)
        try:
            yield Browser(to_write, back_read)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(to_write)
            os.close(back_read)
