"""``serve.json``: what ``skillweave export vllm`` wrote, and how vLLM is started with it. It imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from skillweave.delta.schema import BaseRef
from skillweave.errors import UserError
from skillweave.files.folder import Folder
from skillweave.files.read import is_file, read_card_file
from skillweave.files.recover import settle
from skillweave.files.values import Line, Number, Version
from skillweave.pack.name import PackName

SCHEMA_VERSION = 1
SERVE_FILE = "serve.json"
BASE_FOLDER = "base"
ADAPTERS_FOLDER = "adapters"
BASE_NAME = "skillweave/base"
"""The name of the plain base in vLLM. No pack can have it, because a pack's name has no slash."""
_AGAIN = "Export the weave again with `skillweave export vllm`."


class AdapterRef(BaseModel):
    """One adapter of the folder, and how far it is from its pack."""

    model_config = ConfigDict(extra="forbid")

    rank: Annotated[int, Field(ge=1)]
    digest: Line
    """of the pack (:attr:`skillweave.pack.Skillpack.digest`)"""
    left_out: dict[str, Number] = {}
    """the share of the change in each tensor that the adapter does not have"""
    cut: dict[str, Number] = {}
    """the share of the change that each matrix lost to the highest rank"""
    kl: Number | None = None
    """the KL divergence of the adapter's next token from the pack's along a text, in nats per token, if measured"""

    @property
    def missing(self) -> float:
        """The share of the pack's change that the adapter does not have."""
        return sum(self.left_out.values()) + sum(self.cut.values())


class ServeCard(BaseModel):
    """``serve.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Version = SCHEMA_VERSION
    weave: Line
    """the folder of the weave"""
    base: BaseRef
    """the base that the weave was built on; its ``fingerprint`` is that of ``base/``"""
    dtype: Line
    """``--dtype`` of vLLM"""
    max_lora_rank: Annotated[int, Field(ge=1)]
    """``--max-lora-rank`` of vLLM: the smallest that it takes for all adapters"""
    packs: dict[PackName, AdapterRef]


class VllmFolder:
    """A folder that ``skillweave export vllm`` wrote: ``serve.json``, ``base/`` and ``adapters/NAME/``.

    Raises :class:`UserError` if it is none, or if a part is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        settle(folder)
        self.path = Path(folder).expanduser().resolve()
        if not is_file(self.path / SERVE_FILE):
            raise UserError(
                f"{folder} has no {SERVE_FILE}: name the folder that `skillweave export vllm WEAVE OUT` wrote"
            )
        place = Folder(self.path, SERVE_FILE, _AGAIN).file(SERVE_FILE)
        self.card = read_card_file(place, ServeCard, SCHEMA_VERSION, _AGAIN)
        for part in (self.base, *map(self.adapter, self.card.packs)):
            if not part.is_dir():
                raise UserError(f"{part} is missing. {_AGAIN}")

    @property
    def base(self) -> Path:
        """The folder of the plain base."""
        return self.path / BASE_FOLDER

    def adapter(self, pack: str) -> Path:
        """The folder of a pack's adapter."""
        return self.path / ADAPTERS_FOLDER / pack


def server_arguments(folder: Path, card: ServeCard, *, port: int = 8000) -> list[str]:
    """Return the arguments of ``python -m vllm.entrypoints.openai.api_server`` that serve an exported folder.

    ``--generation-config vllm`` keeps vLLM from sampling by the base's ``generation_config.json``: each request of the
    engine says how tokens are chosen.
    """
    arguments = ["--model", str(folder / BASE_FOLDER), "--served-model-name", BASE_NAME]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--dtype", card.dtype, "--generation-config", "vllm"]
    if not card.packs:
        return arguments
    count = str(len(card.packs))
    arguments += ["--enable-lora", "--max-lora-rank", str(card.max_lora_rank)]
    arguments += ["--max-loras", str(min(len(card.packs), 8)), "--max-cpu-loras", count, "--lora-modules"]
    return [*arguments, *(f"{name}={folder / ADAPTERS_FOLDER / name}" for name in card.packs)]
