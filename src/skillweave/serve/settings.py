"""The settings of the server, and where its key comes from."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from skillweave.config import ByteSize, Config
from skillweave.errors import UserError
from skillweave.files.read import read_text
from skillweave.progress import say_once

KEY_VARIABLE = "SKILLWEAVE_API_KEY"
"""The environment variable with the key that clients must send."""
PLAYGROUND = "/ui"
"""The path below which the playground is."""
_LARGEST_KEY_FILE = 2**16


class ServeConfig(Config):
    """Where the server listens, who may ask it, and how much it takes on at once."""

    host: str = Field(
        default="127.0.0.1", description="the address to listen on; one that other machines reach needs a key"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="0: any free port, which is printed")
    api_key: SecretStr | None = Field(
        default=None,
        description=f"the key that clients must send; a key file or {KEY_VARIABLE} is safer, because other users of "
        "the machine can see the options of a program",
    )
    api_key_file: Path | None = Field(default=None, description="a file with the key on its only line")
    pack_memory: ByteSize | None = Field(
        default=None, description="most bytes that packs may take in memory; none: all packs stay in memory"
    )
    pin: tuple[str, ...] = Field(default=(), description="packs that always stay in memory")
    allow_pack_management: bool = Field(
        default=False, description="packs can be added, removed and pinned over HTTP; this needs a key"
    )
    max_body: ByteSize = Field(default=4 * 2**20, ge=1, description="most bytes of the body of a request")
    body_seconds: float = Field(
        default=30.0, gt=0, description="most seconds for a client to send the head of its request, and for the body"
    )
    stalled_seconds: float = Field(
        default=60.0, gt=0, description="a client that takes none of its answer for so long is disconnected"
    )
    max_streams: int = Field(default=256, ge=1, description="most requests at once; further ones get status 429")
    max_waiting: int = Field(default=1024, ge=1, description="most requests in the queue of the engine")
    max_tokens: int = Field(default=4096, ge=1, description="most tokens of one answer")
    max_requests: int = Field(default=32, ge=1, description="most requests that the model answers side by side")
    cache_tokens: int | None = Field(
        default=None,
        ge=64,
        description="tokens of prompts and answers whose keys and values stay in memory; none: 8,192, or the model's "
        "longest context if that is more",
    )
    grace: float = Field(
        default=30.0, ge=0, description="seconds that running requests have to end when the server is stopped"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: text on a terminal, else JSON lines"
    )
    log_prompts: bool = Field(default=False, description="the log also holds what clients ask")
    ui: bool = Field(
        default=False, description=f"a playground for the browser below {PLAYGROUND}/; it needs the extra `ui`"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="web pages whose scripts may ask the server, for example https://chat.example.org"
    )


def read_key(settings: ServeConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that clients must send: from the settings, the key file or the environment; None: there is none.

    Raises :class:`UserError`, which never shows the key, if two of the settings name one, if it cannot
    be sent, or if there is none where packs are managed over HTTP.
    """
    key = _given_key(settings, environment)
    if key is None and settings.allow_pack_management:
        raise UserError(
            f"--allow-pack-management lets clients add and remove packs, so it needs a key: set {KEY_VARIABLE}"
        )
    return key


def _given_key(settings: ServeConfig, environment: Mapping[str, str]) -> str | None:
    if settings.api_key is not None and settings.api_key_file is not None:
        raise UserError("there are two keys, --api-key and --api-key-file: give one of them")
    if settings.api_key is not None:
        key, where = settings.api_key.get_secret_value(), "--api-key"
    elif settings.api_key_file is not None:
        where = str(settings.api_key_file)
        key = read_text(settings.api_key_file, "the file with the key", largest=_LARGEST_KEY_FILE).strip()
        if os.name == "posix" and settings.api_key_file.stat().st_mode & stat.S_IROTH:
            say_once(f"Warning: the mode of {where} lets every user of this machine read the key: chmod o-r {where}")
    elif KEY_VARIABLE in environment:
        key, where = environment[KEY_VARIABLE], f"the environment variable {KEY_VARIABLE}"
    else:
        return None
    if not key:
        raise UserError(
            f"{where}: the key is empty. Write one, or remove the setting to serve this machine without one"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"{where}: the key has a space, a line break or a character beyond ASCII, which no header holds"
        )
    return key
