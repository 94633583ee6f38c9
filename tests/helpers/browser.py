"""Debian's Chromium without a window: the page as the browser sees it, what its console said, and pictures of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")

_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
).split()
_LONGEST_SECONDS = 90
_CONSOLE = re.compile(r"^\[.*?:CONSOLE[:(]\d+\)?\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Browsed:
    """A page after its scripts ran: its document as HTML, and the lines that they wrote to the console."""

    document: str
    console: list[str]


def browse(page: Path, fragment: str = "") -> Browsed:
    """Open the page at ``#fragment``."""
    out, err = _chromium(page, fragment, "--dump-dom")
    return Browsed(out, _CONSOLE.findall(err))


def picture(page: Path, file: Path, fragment: str = "", *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
    """Write a PNG of the page at ``#fragment``."""
    # Blink's number of the scheme: 0 is dark, 1 is light.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _chromium(page, fragment, f"--screenshot={file}", f"--window-size={width},{height}", scheme)


def _chromium(page: Path, fragment: str, *options: str) -> tuple[str, str]:
    """Standard output and standard error of one run, in a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = f"{page.resolve().as_uri()}#{fragment}"
        command = [str(CHROMIUM), *_OPTIONS, f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, address]
        # In a group of its own, so that its helper processes end with it.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            out, err = process.communicate(timeout=_LONGEST_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.returncode == 0, err
        return out, err
