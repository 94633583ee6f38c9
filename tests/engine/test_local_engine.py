"""The local engine: whatever is named is opened, and answers as it should with the pack that is named, or with none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from helpers.chat_families import FAMILIES, family_tokenizer, micro_llama, teach
from helpers.micro import save_micro
from skillweave.base import Sampling, generate, open_base
from skillweave.delta import Delta
from skillweave.engine import open_engine
from skillweave.errors import UserError
from skillweave.methods.training.sft import encode
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Reply, Weave, fit_router

SAMPLING = Sampling(max_new_tokens=6)
PROMPTS = ["hello", "What is 2 + 2?", "a b c d e f g", "z"]
SUMS = [f"add {n} and {n + 3}" for n in range(24)]
TALK = [f"my dear {chr(97 + n)}, how are you" for n in range(24)]


@pytest.fixture(scope="module")
def places(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two deltas of the micro base, their packs, and weaves of them with and without a router."""
    folder = tmp_path_factory.mktemp("engine")
    base = open_base(micro_base)
    found = {"base": micro_base, "other": save_micro(folder / "other", seed=7)}
    for seed, name in enumerate(("sums", "talk")):
        generator = torch.Generator().manual_seed(seed)
        changes = {
            key: 0.1 * torch.randn(base.checkpoint.shape(key), generator=generator)
            for key in base.checkpoint.names()
            if "proj" in key
        }
        delta = Delta(changes, base_fingerprint=base.fingerprint, base_ref=str(micro_base))
        found[f"{name}-delta"] = delta.save_pretrained(folder / f"{name}-delta")
        pack = zip_delta(delta, base, None, ZipConfig(ratio=0.5), name=name)
        found[name] = pack.save_pretrained(folder / name)
    packs = {name: found[name] for name in ("sums", "talk")}
    router = fit_router(base, {"sums": SUMS, "talk": TALK}, [f"{n}%$#@! {n * 17}" for n in range(24)])
    found["weave"] = Weave.write(folder / "weave", base, packs, router)
    found["plain-weave"] = Weave.write(folder / "plain", base, packs)
    return found


def alone(model_folder: Path, prompts: list[str]) -> list[str]:
    base = open_base(model_folder)
    return [texts[0] for texts in generate(base.model, base.tokenizer, prompts, SAMPLING)]


def answers(engine, prompts: list[str], packs: list[str | None]) -> list[Reply]:
    """The replies for packs as a user names them; None: the user names none."""
    return engine.weave.generate(prompts, [engine.pack_named(pack) for pack in packs], SAMPLING)


def texts(engine, prompts: list[str], packs: list[str | None]) -> list[str]:
    return [reply.text for reply in answers(engine, prompts, packs)]


def test_a_model_answers_as_itself(places: dict[str, Path]) -> None:
    engine = open_engine(str(places["base"]))
    expected = alone(places["base"], PROMPTS)
    assert texts(engine, PROMPTS, [None] * 4) == texts(engine, PROMPTS, ["base"] * 4) == expected


def test_a_delta_answers_as_the_tuned_model_in_float32(places: dict[str, Path]) -> None:
    engine = open_engine(str(places["sums-delta"]))
    assert engine.weave.base.model.dtype == torch.float32
    base = open_base(places["base"])
    delta = Delta.from_pretrained(places["sums-delta"])
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if name in delta:
                parameter += delta.tensor(name)
    expected = [said[0] for said in generate(base.model, base.tokenizer, PROMPTS, SAMPLING)]
    assert texts(engine, PROMPTS, [None] * 4) == expected != alone(places["base"], PROMPTS)
    rounded = open_engine(str(places["sums-delta"]), dtype="bfloat16")
    assert rounded.weave.base.model.dtype == torch.bfloat16


def test_a_pack_answers_with_itself_unless_told_otherwise(places: dict[str, Path]) -> None:
    engine = open_engine(str(places["sums"]))
    woven = Weave.of(open_base(places["base"]), {"x": Skillpack.from_pretrained(places["sums"])})
    expected = [reply.text for reply in woven.generate(PROMPTS, ["x"] * 4, SAMPLING)]
    assert texts(engine, PROMPTS, [None] * 4) == texts(engine, PROMPTS, ["sums"] * 4) == expected
    mixed = answers(engine, PROMPTS, ["base", None, "sums", "base"])
    own = alone(places["base"], PROMPTS)
    assert [reply.text for reply in mixed] == [own[0], expected[1], expected[2], own[3]]
    assert [reply.pack for reply in mixed] == [None, "sums", "sums", None]
    assert own != expected


def test_a_weave_routes_unless_told_otherwise(places: dict[str, Path]) -> None:
    engine = open_engine(str(places["weave"]))
    asked = [SUMS[3], TALK[5], SUMS[8]]
    routed = answers(engine, asked, [None] * 3)
    assert [reply.pack for reply in routed] == ["sums", "talk", "sums"]
    assert all(0 < (reply.confidence or 0) <= 1 for reply in routed)
    assert answers(engine, asked, ["auto"] * 3) == routed
    told = answers(engine, asked, ["talk", "base", None])
    assert [reply.pack for reply in told] == ["talk", None, "sums"]
    assert [reply.confidence is None for reply in told] == [True, True, False]
    assert told[1].text == alone(places["base"], asked[1:2])[0]


def test_a_weave_without_router_answers_as_the_base_by_default(places: dict[str, Path]) -> None:
    engine = open_engine(str(places["plain-weave"]))
    assert texts(engine, PROMPTS, [None] * 4) == alone(places["base"], PROMPTS)
    with pytest.raises(UserError, match="has no router"):
        answers(engine, PROMPTS, ["auto"] * 4)


@pytest.mark.parametrize(
    ("target", "asked", "pack", "note"),
    [
        ("base", PROMPTS[0], None, ""),
        ("sums", PROMPTS[1], None, ""),
        ("sums", PROMPTS[1], "base", ""),
        ("weave", PROMPTS[2], "talk", ""),
        ("weave", SUMS[3], None, "route: sums ("),
        ("sums-delta", PROMPTS[0], None, ""),
    ],
)
def test_a_streamed_answer_is_the_same_answer(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str], target: str, asked: str, pack: str | None, note: str
) -> None:
    engine = open_engine(str(places[target]))
    capsys.readouterr()
    whole = answers(engine, [asked], [pack])[0]
    file = io.StringIO()
    streamed = engine.stream(asked, engine.pack_named(pack), SAMPLING, file)
    assert (streamed.text, streamed.pack) == (whole.text, whole.pack)
    assert file.getvalue() == f"{whole.text}\n"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(note) if note else shown.err == ""


def test_the_stream_ends_before_an_end_that_is_no_special_token(tmp_path: Path) -> None:
    tokenizer = family_tokenizer(FAMILIES["gemma"], special=False)
    model = micro_llama(tokenizer)
    teach(model, encode(tokenizer, [("x?", "Yes, b.")], 99), 50)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = io.StringIO()
    reply = open_engine(str(tmp_path)).stream("x?", None, Sampling(20), file)
    assert (reply.text, file.getvalue()) == ("Yes, b.", "Yes, b.\n")


def test_the_stream_comes_word_by_word(places: dict[str, Path]) -> None:
    class Parts(io.StringIO):
        def write(self, text: str) -> int:
            parts.append(text)
            return super().write(text)

    parts: list[str] = []
    drawn = Sampling(max_new_tokens=60, temperature=2.0, seed=6)  # a random model says few spaces when greedy
    reply = open_engine(str(places["base"])).stream("one two", None, drawn, Parts())
    assert "".join(parts) == f"{reply.text}\n"
    assert " " in reply.text.strip()
    assert len([part for part in parts if part.strip()]) > 1


@pytest.mark.parametrize("target", ["sums", "sums-delta", "weave"])
def test_another_base_is_refused_and_a_moved_one_taken(places: dict[str, Path], target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"belongs on|was woven for"):
        open_engine(str(places[target]), base=str(places["other"]))
    engine = open_engine(str(places[target]), base=str(places["base"]), dtype="float32", device="cpu")
    assert len(texts(engine, PROMPTS[:1], [None])) == 1


def test_what_is_nothing_of_ours_is_a_mistake(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--base goes with a weave, pack or delta folder"):
        open_engine(str(places["base"]), base=str(places["base"]))
    with pytest.raises(UserError, match=r"config\.json"):
        open_engine(str(tmp_path))
    with pytest.raises(UserError, match=r"no pack 'smus'; did you mean 'sums'\?"):
        answers(open_engine(str(places["sums"])), PROMPTS, ["smus"] * 4)
    with pytest.raises(UserError, match=r"no pack 'smus'; did you mean 'sums'\?"):
        open_engine(str(places["weave"])).stream(PROMPTS[0], "smus", SAMPLING, io.StringIO())
