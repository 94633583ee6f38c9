"""``skillweave chat`` talks with a server from the terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from skillweave.cli.app import app
from skillweave.cli.options import TEMPERATURE
from skillweave.cli.output import out, say
from skillweave.errors import UserError
from skillweave.progress import console
from skillweave.terminal import for_file, printable

if TYPE_CHECKING:
    from skillweave.serve.chat import ChatSession

_HELP = "/pack NAME, /packs, /system TEXT, /reset, /quit. Ctrl-C stops an answer."

KEY_FILE = typer.Option(
    None, "--api-key-file", help="A file with the server's key; or set SKILLWEAVE_API_KEY or OPENAI_API_KEY."
)


@app.command()
def chat(
    url: str = typer.Argument(..., help="The server, for example http://127.0.0.1:8000/v1."),
    pack: str = typer.Option(
        None, "--pack", "-p", help="The pack (or model) that answers; without it `auto`, or the server's first pack."
    ),
    system: str = typer.Option("", "--system", help="A system message before the first turn."),
    temperature: float = TEMPERATURE,
    max_tokens: int = typer.Option(None, "--max-tokens", "-n", min=1, help="Longest answer, in tokens."),
    api_key_file: Path = KEY_FILE,
) -> None:
    """Talk with a server: any one that speaks OpenAI's API.

    Commands in the conversation: `/pack NAME` (who answers), `/packs` (who can), `/system TEXT`, `/reset` (a new
    conversation), `/quit`. Ctrl-C stops an answer, and Ctrl-D ends the program. If the server tells which pack
    answered, a note shows it.

    **Examples**

    `skillweave chat http://127.0.0.1:8000/v1`

    `skillweave chat http://127.0.0.1:8000/v1 --pack sort_numbers`

    `skillweave chat https://llm.example.org/v1 --api-key-file key.txt`
    """
    from openai import OpenAI

    from skillweave.serve.chat import ChatSession, listed_models

    client = OpenAI(base_url=checked_url(url), api_key=client_key(api_key_file), max_retries=0)
    models = listed_models(client)
    if not models and pack is None:
        raise UserError(f"{url} lists no model: name one with --pack")
    session = ChatSession(
        client, models, _first(models) if pack is None else pack, system, max_tokens, temperature=temperature
    )
    session.choose(session.model)
    console.print(f"{session.model} answers. {_HELP}", style="dim", soft_wrap=True)
    with _interruptible():
        _talk(session)


def _first(models: list[str]) -> str:
    """The model that answers if none is named: the router, or the first one that is not the plain base."""
    return min(models, key=lambda name: (name != "auto", name == "base"))


def checked_url(url: str) -> str:
    """Return the address of an API. Raises :class:`UserError` for a text that is none."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right or parts.username or parts.password:
        raise UserError(f"{url!a:.200} is no address of a server: write it as http://127.0.0.1:8000/v1")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def client_key(file: Path | None) -> str:
    """Return the key for a server; "none" if there is no key, because the client wants some text."""
    from skillweave.serve.settings import ServeConfig, read_key

    key = read_key(ServeConfig(api_key_file=file))
    return key or os.environ.get("OPENAI_API_KEY") or "none"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let each Ctrl-C raise KeyboardInterrupt; outside of this, the second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _talk(session: ChatSession) -> None:
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("(/quit or Ctrl-D ends)", style="dim")
            continue
        if not text:
            continue
        if text in ("/quit", "/exit"):
            return
        try:
            if text.startswith("/"):
                _obey(session, text)
            else:
                _answer(session, text)
        except UserError as error:
            console.print(str(error), style="red", soft_wrap=True)


def _answer(session: ChatSession, text: str) -> None:
    pieces = session.ask(text)
    try:
        for piece in pieces:
            out.file.write(for_file(piece, out.file))
            out.file.flush()
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim")
    finally:
        pieces.close()  # type: ignore[attr-defined]
        out.file.write("\n")
        out.file.flush()
    if session.route is not None:
        sure = "" if session.route.confidence is None else f" ({100 * session.route.confidence:.0f}%)"
        console.print(f"route: {printable(session.route.pack)}{sure}", style="dim")


def _obey(session: ChatSession, text: str) -> None:
    """Do what a line that begins with a slash says."""
    name, _, value = text.partition(" ")
    value = value.strip()
    if name == "/packs":
        for model in session.models:
            say(f"{'*' if model == session.model else ' '} {model}")
    elif name == "/pack":
        session.choose(value)
        console.print(f"{session.model} answers now", style="dim")
    elif name == "/system":
        session.system = value
        console.print("system message set" if value else "no system message", style="dim")
    elif name == "/reset":
        session.turns.clear()
        console.print("new conversation", style="dim")
    else:
        raise UserError(f"unknown command {name}: {_HELP}")
