"""``skillweave serve`` answers OpenAI clients with a weave, pack, delta or model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from skillweave.cli.app import app
from skillweave.cli.models import OTHER_BASE, TARGET
from skillweave.cli.options import BACKBONE, DEFAULTS, DEVICE, DTYPE, SET
from skillweave.errors import UserError, nearest
from skillweave.progress import console

if TYPE_CHECKING:
    from socket import socket

    from skillweave.serve.engine_service import EngineService
    from skillweave.serve.settings import ServeConfig

_ENGINES = ("local", "vllm")


@app.command()
def serve(
    target: str = TARGET,
    host: str = typer.Option(None, "--host", help="The address to listen on [127.0.0.1]; others need a key."),
    port: int = typer.Option(None, "--port", min=0, max=65535, help="The port [8000]; 0: any free one."),
    engine: str = typer.Option("local", "--engine", help="What computes: `local` (this process) or `vllm`."),
    vllm_server: list[str] = typer.Option(
        [], "--vllm-server", help="The URL of a running vLLM server. Repeatable. Without one, a server is started."
    ),
    api_key: str = typer.Option(
        None,
        "--api-key",
        help="The key that clients must send. SKILLWEAVE_API_KEY or a file is safer.",
        show_default=False,
    ),
    api_key_file: Path = typer.Option(None, "--api-key-file", help="A file with the key on its only line."),
    pack_memory: str = typer.Option(
        None, "--pack-memory", help="Most bytes of packs in memory: `256MiB`. Without it, all packs stay."
    ),
    pin: list[str] = typer.Option([], "--pin", help="A pack that always stays in memory. Repeatable."),
    allow_pack_management: bool = typer.Option(
        False, "--allow-pack-management", help="Let clients with the key add, remove and pin packs."
    ),
    max_tokens: int = typer.Option(None, "--max-tokens", "-n", min=1, help="Longest answer, in tokens [4096]."),
    max_requests: int = typer.Option(None, "--max-requests", min=1, help="Requests answered side by side [32]."),
    cache_tokens: int = typer.Option(
        None, "--cache-tokens", min=64, help="Tokens whose keys and values stay in memory [8192, or the context]."
    ),
    max_waiting: int = typer.Option(None, "--max-waiting", min=1, help="Most requests in the queue [1024]."),
    max_streams: int = typer.Option(
        None, "--max-streams", min=1, help="Most requests at once [256]; others get status 429."
    ),
    max_body: str = typer.Option(None, "--max-body", help="Most bytes of a request [4MiB]."),
    grace: float = typer.Option(None, "--grace", min=0, help="Seconds for running requests when it stops [30]."),
    log_format: str = typer.Option(
        None, "--log-format", help="`json`, `text`, or `auto`: text on a terminal, else JSON lines [auto]."
    ),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Also log what clients ask."),
    ui: bool = typer.Option(False, "--ui", help="Also serve a playground for the browser, at /ui/."),
    cors_origin: list[str] = typer.Option(
        [], "--cors-origin", help="A web page whose scripts may ask the server. Repeatable."
    ),
    require_audit: bool = typer.Option(
        False, "--require-audit", help="Refuse packs without an audit on their card, or with an alarm."
    ),
    base: str = OTHER_BASE,
    dtype: str = DTYPE,
    backbone: str = BACKBONE,
    device: str = DEVICE,
    overrides: list[str] = SET,
    config: Path = DEFAULTS,
) -> None:
    """Serve a weave, pack, delta or model to every client that speaks OpenAI's API.

    The model `auto` lets the router choose a pack, a pack's name names it, and `base` is the plain base. Without a key,
    only programs of this machine can ask. Ctrl-C stops the server when running requests have ended, a second one at
    once.

    **Examples**

    `skillweave serve runs/demo`

    `skillweave serve runs/demo --port 0 --pack-memory 256MiB --pin sort_numbers`

    `skillweave serve runs/demo --ui`

    `skillweave serve runs/demo --host 0.0.0.0 --api-key-file key.txt`
    """
    from skillweave.config import read_config
    from skillweave.serve.settings import ServeConfig, read_key

    typed: dict[str, Any] = {
        "host": host, "port": port, "api_key": api_key, "api_key_file": api_key_file, "pack_memory": pack_memory,
        "pin": pin, "allow_pack_management": allow_pack_management, "max_tokens": max_tokens,
        "max_requests": max_requests, "cache_tokens": cache_tokens, "max_waiting": max_waiting,
        "max_streams": max_streams, "max_body": max_body, "grace": grace, "log_format": log_format,
        "log_prompts": log_prompts, "ui": ui, "cors_origins": cors_origin,
    }  # fmt: skip
    given = {name: value for name, value in typed.items() if value is not None}
    settings = read_config(ServeConfig, given, overrides, called="serve")
    key = read_key(settings)

    opening: dict[str, Any] = {"base": base, "dtype": dtype, "backbone": backbone, "device": device}
    opening["require_audit"] = require_audit
    _check_engine(engine, opening, vllm_server)
    # The imports below take seconds, in which nothing would be shown.
    console.print(f"Opening {target}. Clients can connect as soon as its address is shown.", soft_wrap=True)
    from skillweave.serve.run import bind

    with bind(settings, key) as bound:  # a port in use is told before a model is loaded
        from skillweave.serve.open_service import open_service, open_vllm_service

        if engine == "vllm":
            service = open_vllm_service(target, settings, vllm_server)
        else:
            service = open_service(target, settings, **opening)
        _run(service, target, settings, key, bound)


def _check_engine(engine: str, opening: dict[str, Any], servers: list[str]) -> None:
    """Raise :class:`UserError` for an unknown engine, and for options that it would not read."""
    if engine not in _ENGINES:
        raise UserError(f"--engine {engine!a:.60}: {nearest(engine, _ENGINES)}")
    if engine == "local" and servers:
        raise UserError("--vllm-server goes with --engine vllm")
    without = [f"--{name.replace('_', '-')}" for name, value in opening.items() if value]
    if engine == "vllm" and without:
        raise UserError(f"vLLM serves the exported folder as it is: leave out {', '.join(without)}")


def _run(service: EngineService, target: str, settings: ServeConfig, key: str | None, bound: socket) -> None:
    """Answer requests until a signal comes."""
    from skillweave.cli.output import say
    from skillweave.serve.app import create_app
    from skillweave.serve.logs import form_of_log
    from skillweave.serve.run import how_to_ask, run_server, url_of
    from skillweave.serve.settings import PLAYGROUND

    application = create_app(service, settings, key, log_form=form_of_log(settings.log_format))

    def ready() -> None:
        url = url_of(bound)
        say(f"{target} is served at {url}/v1 (Ctrl-C stops it). Ask it:")
        for command in how_to_ask(url, service.default, key is not None, settings.api_key_file):
            say(f"  {command}")
        if settings.ui:
            say(f"The playground is at {url}{PLAYGROUND}/")

    run_server(application, bound, grace=settings.grace, ready=ready)
