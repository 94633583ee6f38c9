"""Packs whose prompts the backbone reads: every way of answering gives what two plain passes give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch

from helpers.weave_packs import random_pack
from skillweave.base import Base, Sampling, open_base, prompt_ids
from skillweave.base.prefix import backbone_tokens, opening_ids
from skillweave.engine import AsyncEngine
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.pack import Skillpack
from skillweave.tools.conversation import OpenTools
from skillweave.weave import Request, Weave
from skillweave.weave.packed_model import PackedModel

LONG_OPENING = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>then: {% endif %}"
)
OWN = "own"
"""the pack that reads its prompts itself"""
BY_BACKBONE = ("a", "b")
PROMPTS = ["one", "a longer prompt than the first one", "and a third"]
TOKENS = 10


def weave_of(folder: Path, template: str | None = LONG_OPENING) -> Weave:
    base = open_base(folder, dtype="float32")
    base.tokenizer.chat_template = template
    packs = {name: random_pack(base.model, base.fingerprint, name=name, seed=ord(name[0])) for name in (OWN, "a", "b")}
    for name in BY_BACKBONE:
        packs[name].card.prefill = "backbone"
    return Weave.of(base, packs)


@torch.no_grad()
def by_two_passes(base: Base, pack: Skillpack | None, prompt: str, suffix: int) -> str:
    """The greedy answer, without a batch, if the base reads all but the last ``suffix`` tokens of the prompt.

    ``suffix`` 0: the pack reads all.
    """
    packed, ids = PackedModel(base.model), prompt_ids(base.tokenizer, prompt)
    if pack is not None:
        packed.add(packed.prepare("x", pack))
    cut = len(ids) - suffix if suffix else 0
    cache = base.model(torch.tensor([ids[:cut]]), use_cache=True).past_key_values if cut else None
    fed, written = ids[cut:], []
    with packed.every_row(None if pack is None else "x"):
        for _ in range(TOKENS):
            out = base.model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, [int(out.logits[0, -1].argmax())]
            if fed[0] == base.tokenizer.eos_token_id:
                break
            written += fed
    return base.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def expected(weave: Weave, names: Sequence[str | None], suffix: int) -> list[str]:
    packs = {name: weave.shelf._skillpack(name) for name in weave.packs}
    return [
        by_two_passes(weave.base, None if name is None else packs[name], prompt, suffix if name in BY_BACKBONE else 0)
        for prompt in PROMPTS
        for name in names
    ]


NAMES = [None, OWN, *BY_BACKBONE]


@pytest.mark.parametrize(("template", "suffix"), [(LONG_OPENING, 7), (micro_tokenizer().chat_template, 1), (None, 1)])
def test_mixed_batches_answer_as_two_passes_do(micro_base: Path, template: str | None, suffix: int) -> None:
    weave = weave_of(micro_base, template)
    wanted = expected(weave, NAMES, suffix)
    asked = [prompt for prompt in PROMPTS for _ in NAMES]
    got = [reply.text for reply in weave.generate(asked, NAMES * len(PROMPTS), Sampling(TOKENS))]
    assert got == wanted
    alone = [
        weave.generate([prompt], name, Sampling(TOKENS))[0].text
        for prompt, name in zip(asked, NAMES * len(PROMPTS), strict=True)
    ]
    assert alone == wanted
    by_packs = [
        by_two_passes(weave.base, weave.shelf._skillpack(name), prompt, 0) for prompt in PROMPTS for name in "ab"
    ]
    assert by_packs != expected(weave, BY_BACKBONE, suffix)  # it makes a difference


def test_the_engine_answers_as_two_passes_do_and_reads_the_prefix_once_for_all_packs(micro_base: Path) -> None:
    weave = weave_of(micro_base)
    shared = "a long beginning that is the same for all, " * 3
    other = "another beginning, which nothing has read before: " * 3
    asked = [(shared + prompt, name) for prompt in PROMPTS for name in NAMES]

    async def main() -> tuple[list[str], list[str], list[int]]:
        async with AsyncEngine(weave) as engine:
            together = await asyncio.gather(
                *(engine.submit(prompt, name, Sampling(TOKENS)).reply() for prompt, name in asked)
            )
            in_turn, read = [], []
            for name in (*BY_BACKBONE, None, OWN):
                before = engine.counters().step_tokens
                in_turn.append((await engine.submit(other, name, Sampling(TOKENS)).reply()).text)
                read.append(engine.counters().step_tokens - before)
            return [reply.text for reply in together], in_turn, read

    together, in_turn, read = asyncio.run(asyncio.wait_for(main(), 60))
    assert together == [weave.generate([prompt], name, Sampling(TOKENS))[0].text for prompt, name in asked]
    assert in_turn == [weave.generate([other], name, Sampling(TOKENS))[0].text for name in (*BY_BACKBONE, None, OWN)]
    prompt = len(prompt_ids(weave.base.tokenizer, other))
    assert read[0] >= prompt
    # What the first pack read is there for the second one and for the plain base, but not for the pack with its own.
    assert max(read[1:3]) < 32 + 7 + TOKENS
    assert read[3] >= prompt


def test_how_many_tokens_the_backbone_reads() -> None:
    assert backbone_tokens([5, 6, 7, 8], [7, 8]) == 2
    assert backbone_tokens([5, 6, 7, 8], [6, 8]) == 3
    assert backbone_tokens([5, 6], []) == 1
    assert backbone_tokens([5, 6], [4, 5, 6]) == 1
    assert backbone_tokens([5, 6], [5, 6]) == 0
    assert backbone_tokens([], [5]) == 0
    assert opening_ids(micro_tokenizer(None)) == []
    assert opening_ids(micro_tokenizer()) == [micro_tokenizer().convert_tokens_to_ids("<assistant>")]
    refuses = "{{ raise_exception('no') }}"
    assert opening_ids(micro_tokenizer(refuses)) == []
    rewrites = "{% if add_generation_prompt %}begin{% else %}{{ messages[0]['content'] }}{% endif %}"
    assert opening_ids(micro_tokenizer(rewrites)) == []


def test_the_card_keeps_the_mark_and_old_cards_read_as_before(micro_base: Path, tmp_path: Path) -> None:
    base = open_base(micro_base)
    pack = random_pack(base.model, base.fingerprint)
    unmarked = pack.digest
    pack.save_pretrained(tmp_path / "pack")
    assert '"prefill"' not in (tmp_path / "pack" / "skillpack.json").read_text()
    assert Skillpack.from_pretrained(tmp_path / "pack").card.prefill == "pack"
    pack.card.prefill = "backbone"
    assert pack.digest != unmarked
    pack.save_pretrained(tmp_path / "pack")
    again = Skillpack.from_pretrained(tmp_path / "pack")
    assert (again.card.prefill, again.card.schema_version) == ("backbone", 4)
    assert "the backbone reads the prompts" in (tmp_path / "pack" / "README.md").read_text()


def test_conversations_with_tools_are_refused(micro_base: Path) -> None:
    weave = weave_of(micro_base)
    tools = OpenTools(None, None)  # type: ignore[arg-type]  # refused before they are looked at
    with pytest.raises(UserError, match=r"the backbone reads the prompts of the pack 'a' .*without tools"):
        weave.answer([Request("2 + 2", "a", tools=tools)])


def test_a_mark_on_a_pack_that_needs_steps_of_its_own_is_refused(micro_base: Path) -> None:
    base = open_base(micro_base)
    pack = random_pack(base.model, base.fingerprint)
    pack.card.prefill = "backbone"
    weave = Weave.of(base)
    weave.card.packs.append("skill")
    weave.shelf._skillpack = lambda _: pack
    with (
        mock.patch.object(PackedModel, "why_own_steps", return_value="it is so"),
        pytest.raises(UserError, match=r"impossible here, because it is so: zip the skill again without prefill"),
    ):
        weave.load("skill")
    assert weave.loaded == []
    weave.load("skill")
    assert weave.backbone_tokens("skill", [5, 6, 7]) == 2
    weave.unload("skill")
    assert weave.backbone_tokens("skill", [5, 6, 7]) == 0
