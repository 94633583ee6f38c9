"""A pack of a weave as a model of the reasoning agents, and the name under which its answers are cached."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.micro import micro_tokenizer
from helpers.weave_packs import random_pack
from skillweave.base import Base, Sampling, open_base
from skillweave.engine import AsyncEngine
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.reason.models.local import LocalModel, local_identity
from skillweave.reason.models.model import Completion, Model, ModelCall, ModelUnreachable
from skillweave.weave import AUTO, Router, Weave

NORM = "model.norm.weight"
TALK = (("system", "be short"), ("user", "2 + 2?"), ("assistant", "4"), ("user", "and 3 + 3?"))


@pytest.fixture(scope="module")
def base(micro_base: Path) -> Base:
    return open_base(micro_base)


def pack(base: Base, name: str, seed: int = 0) -> Skillpack:
    return random_pack(base.model, base.fingerprint, name=name, seed=seed, difference=(NORM,))


@pytest.fixture(scope="module")
def weave(base: Base) -> Weave:
    return Weave.of(base, {"a": pack(base, "a", 1), "b": pack(base, "b", 2)})


def complete(weave: Weave, pack: str | None, *calls: ModelCall) -> list[Any]:
    """The completions of the calls, or the errors."""

    async def main() -> list[Any]:
        async with AsyncEngine(weave) as engine:
            model: Model = LocalModel(engine, pack, identity=local_identity(weave, pack))
            found = await asyncio.gather(*(model.complete(call) for call in calls), return_exceptions=True)
            await model.close()
            return found

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_call_becomes_a_chat_and_a_reply_a_completion(weave: Weave) -> None:
    cold, warm = ModelCall(TALK, 0.0, 7, 0), ModelCall(TALK, 1.0, 12, 5)
    other = ModelCall(TALK, 1.0, 12, 6)
    first, drawn, again, different = complete(weave, "a", cold, warm, warm, other)
    messages = [{"role": role, "content": content} for role, content in TALK]
    expected = weave.generate([messages], "a", Sampling(7))[0]
    ids = weave.base.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert first == Completion(expected.text, "length", len(ids), 7)
    assert drawn == again != different


def test_without_a_template_the_contents_are_paragraphs(base: Base) -> None:
    bare = Weave.of(Base(base.model, micro_tokenizer(None), base.fingerprint, "bare", base.path))
    (found,) = complete(bare, None, ModelCall(TALK, 0.0, 7, 0))
    text = "\n\n".join(content for _, content in TALK)
    assert found.text == bare.generate([text], None, Sampling(7))[0].text
    assert found.prompt_tokens == len(text)


def test_what_cannot_be_answered_is_unreachable_and_the_others_are_answered(base: Base) -> None:
    broken = pack(base, "broken")
    broken.tensors[NORM].fill_(torch.nan)
    weave = Weave.of(base, {"broken": broken})
    call, long = ModelCall(TALK, 0.0, 4, 0), ModelCall((("user", "x" * 300),), 0.0, 4, 0)
    found, refused = complete(weave, None, call, long)
    assert found.completion_tokens == 4
    assert isinstance(refused, ModelUnreachable)
    assert "the model's context is 256" in str(refused)
    (failed,) = complete(weave, "broken", call)
    assert isinstance(failed, ModelUnreachable)
    assert "the pack 'broken' cannot answer" in str(failed)

    async def closed() -> None:
        async with AsyncEngine(weave) as engine:
            model = LocalModel(engine, None, identity="x")
        await model.complete(call)

    with pytest.raises(ModelUnreachable, match="the engine is closed"):
        asyncio.run(closed())
    with pytest.raises(UserError, match="no pack 'c'"):
        LocalModel(AsyncEngine(weave), "c", identity="x")
    with pytest.raises(UserError, match="has no router"):
        LocalModel(AsyncEngine(weave), AUTO, identity="x")


def test_an_identity_tells_apart_all_that_changes_the_answers(base: Base, weave: Weave, tmp_path: Path) -> None:
    found = [local_identity(weave, one) for one in (None, "a", "b", AUTO)]
    assert all(base.fingerprint in one for one in found)
    # Another pack of the same name, another dtype, another template: nothing of them may share a cache.
    found.append(local_identity(Weave.of(base, {"a": pack(base, "a", 3)}), "a"))
    half = open_base(base.path, dtype="bfloat16")
    found.append(local_identity(Weave.of(half), None))
    found.append(
        local_identity(Weave.of(Base(base.model, micro_tokenizer(None), base.fingerprint, "x", base.path)), None)
    )
    width = base.model.config.hidden_size
    for seed in (0, 1):
        weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
        router = Router(["a", "b", "base"], weight, torch.zeros(3), torch.zeros(width), torch.ones(width), 1, 0.1)
        packs = {name: pack(base, name, seed) for seed, name in ((1, "a"), (2, "b"))}
        folder = Weave.write(tmp_path / f"weave{seed}", base, packs, router)
        routed = Weave.from_pretrained(folder, base=base)
        found.append(local_identity(routed, AUTO))
        assert local_identity(routed, "a") == local_identity(weave, "a")  # the same pack, from memory and from files
    assert len(set(found)) == len(found)
    moved = (tmp_path / "weave1").rename(tmp_path / "moved")
    assert local_identity(Weave.from_pretrained(moved, base=base), AUTO) == found[-1]
    with pytest.raises(UserError, match="no pack 'c'"):
        local_identity(weave, "c")
