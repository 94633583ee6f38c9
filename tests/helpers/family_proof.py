"""Test one model family from end to end: fine-tune to pack, pack to fine-tune, a mixed batch, and the engine."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from helpers.micro_families import build, tune
from skillweave.base import Sampling, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.engine import AsyncEngine
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave, put_into_int8

PASS = "pass"
_NEAR_TUNED = 0.2
"""The largest error over effect: the difference of zipped and tuned logits, over what tuning changed.

Eight-bit factors leave about a hundredth, and more if a router sends a token to another expert because of it.
"""
_NEAR_ROUNDED = 0.5
"""The same on a base in int8, whose rounding sends more tokens to other experts."""
_NEAR_ALONE = 1e-3
_SAMPLING = Sampling(max_new_tokens=6)
PROMPTS = ["what is 3 and 4", "hello", "sort 9 2 5", "and now"]


@dataclass
class Row:
    """The results of one family. ``zip``, ``unzip``, ``mixed`` and ``engine`` are "pass" or the reason of a failure."""

    family: str
    parameters: int
    zip: str
    unzip: str = ""
    mixed: str = ""
    served: str = ""
    """``row by row``, or ``alone: why``"""
    engine: str = ""
    """whether the server's engine answers requests that come together as `generate` answers each of them alone"""
    left_out: float = 0.0
    weight_error: float = 0.0
    unzip_error: float = 0.0

    @property
    def passed(self) -> bool:
        return self.zip == self.unzip == self.mixed == PASS

    def record(self) -> dict[str, Any]:
        return asdict(self)


def prove(family: str, folder: Path, codec: str = "skillzip", bits: int = 8, int8: bool = False) -> Row:
    """Build a base and two fine-tunes of ``family``; zip, unzip and serve them, with ``int8`` on a base in int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _prove(family, folder, codec, bits, int8)


def _prove(family: str, folder: Path, codec: str, bits: int, int8: bool) -> Row:
    places = {"base": folder / "base", "a": folder / "a", "b": folder / "b"}
    for seed, place in enumerate(places.values()):
        model = build(family)
        (tune(model, seed) if seed else model).save_pretrained(place)
        micro_tokenizer().save_pretrained(place)
    row = Row(family, sum(parameter.numel() for parameter in model.parameters()), "")
    base = open_base(places["base"], dtype="float32", device="cpu")

    def zipped(name: str) -> Any:
        config = ZipConfig(budget="8MB", bits=bits, codec=codec)
        return zip_delta(Delta.between(places["base"], places[name]), base, None, config, name=name)

    try:
        packs = {name: zipped(name) for name in "ab"}
    except UserError as error:
        row.zip = str(error)
        return row
    measured = packs["a"].card.codec.measured
    row.zip, row.left_out, row.weight_error = PASS, measured["left_out_share"], measured["weight_error"]
    ids = torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(3))
    before = _logits(base.model, ids)
    write_tuned(places["base"], packs["a"].unzip(), folder / "back", dtype="float32")
    wanted = {name: _logits(_opened(places[name]), ids) for name in "ab"}
    row.unzip_error = _error(_logits(_opened(folder / "back"), ids), wanted["a"], before)
    row.unzip = PASS if row.unzip_error < _NEAR_TUNED else f"{row.unzip_error:.2f} of the effect is lost"
    if int8:
        before = _logits(put_into_int8(base).model, ids)
    weave = Weave.of(base, packs)
    row.mixed, row.served = _mixed(weave, ids, before, wanted, _NEAR_ROUNDED if int8 else _NEAR_TUNED)
    row.engine = asyncio.run(asyncio.wait_for(_engine(weave), 120))
    return row


def _mixed(
    weave: Weave, ids: torch.Tensor, before: torch.Tensor, wanted: dict[str, torch.Tensor], near: float
) -> tuple[str, str]:
    woven = weave.packed_model
    why = next((why for name in weave.loaded if (why := woven.why_alone(name))), None)
    served = "row by row" if why is None else f"alone: {why}"
    alone = {}
    for name in "ab":
        with woven.rows([name] * 3):
            alone[name] = _logits(weave.base.model, ids)
        if (error := _error(alone[name], wanted[name], before)) > near:
            return f"alone, {error:.2f} of the effect is lost", served
    if not torch.equal(_logits(weave.base.model, ids), before):
        return "the base is not what it was", served
    if why is None:
        with woven.rows(["a", None, "b"]):
            mixed = _logits(weave.base.model, ids)
        expected = torch.stack([alone["a"][0], before[1], alone["b"][2]])
        if (error := _error(mixed, expected, before)) > _NEAR_ALONE:
            return f"{error:.1e} of the effect from alone", served
    together, apart = _answers(weave, ["a", None, "b", "a"])
    if together == apart:
        return PASS, served
    together, apart = _answers(weave, [None] * len(PROMPTS))
    if together != apart:
        return "the base itself answers otherwise in a padded batch than alone", served
    return "a prompt is answered otherwise in a mixed batch than alone", served


async def _engine(weave: Weave) -> str:
    """Whether the engine gives the answers of `generate`, or why it refuses to open."""
    names = ["a", None, "b", "a"]
    try:
        async with AsyncEngine(weave) as engine:
            asked = [engine.submit(prompt, name, _SAMPLING) for prompt, name in zip(PROMPTS, names, strict=True)]
            together = [(await generation.reply()).text for generation in asked]
    except UserError as error:
        refused, advised, _ = str(error).partition(" Answer with `skillweave generate`")
        return refused.replace(str(weave.base.ref), "it") if advised else f"failed: {error}"
    return PASS if together == _alone(weave, names) else "a request is answered otherwise than alone"


def _answers(weave: Weave, names: list[str | None]) -> tuple[list[str], list[str]]:
    """The answers of one mixed call, and those of one call for each prompt."""
    return [reply.text for reply in weave.generate(PROMPTS, names, _SAMPLING)], _alone(weave, names)


def _alone(weave: Weave, names: list[str | None]) -> list[str]:
    """The answers of one call for each prompt."""
    return [weave.generate([prompt], name, _SAMPLING)[0].text for prompt, name in zip(PROMPTS, names, strict=True)]


def _opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def _error(found: torch.Tensor, wanted: torch.Tensor, before: torch.Tensor) -> float:
    """The distance from ``found`` to ``wanted``, divided by the distance from ``before`` to ``wanted``."""
    return float((found - wanted).norm() / (wanted - before).norm())
