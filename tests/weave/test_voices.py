"""A pack answers with the tokenizer, template, end tokens and defaults of its fine-tune, alone and beside others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from helpers.travelling import TEMPLATE, model, save, tokenizer, tuned
from skillweave.base import Sampling, generate_answers, open_base, prompt_text
from skillweave.base.chat import prompt_ids
from skillweave.base.ends import stop_tokens
from skillweave.delta import Delta
from skillweave.delta.carry import Carried
from skillweave.engine import open_engine
from skillweave.errors import UserError
from skillweave.pack import Skillpack
from skillweave.skillzip import ZipConfig, source, zip_delta
from skillweave.tools import Toolbox
from skillweave.tools.conversation import ConversationSettings, OpenTools
from skillweave.weave import Request, Weave

OTHER = TEMPLATE.replace("[assistant]", "=>")
BIG = ZipConfig(budget="1MB", bits=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("voices")
    base = save(place / "base", model(), tokenizer())
    opened = open_base(base, device="cpu")
    tunes = {
        "chat": save(place / "chat", tuned(model(), seed=1), tokenizer(template=TEMPLATE), [1, *range(40, 60)]),
        "other": save(place / "other", tuned(model(), seed=2), tokenizer(template=OTHER), [1, *range(60, 90)]),
        "plain": save(place / "plain", tuned(model(), seed=3), tokenizer()),
    }
    packs = {}
    for name, folder in tunes.items():
        pack = zip_delta(Delta.between(base, folder), opened, None, BIG, name=name)
        packs[name] = Skillpack.from_pretrained(pack.save_pretrained(place / "packs" / name))
    return place, opened, packs


def test_a_pack_brings_only_what_differs(made) -> None:
    _, _, packs = made
    assert set(packs["chat"].carried.files) == {
        "chat_template.jinja",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert not packs["plain"].carried
    assert packs["plain"].card.from_base == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("chat_template.jinja", "{% endfor %}", r"the chat template of the pack 'chat' \(line 1\) refuses messages"),
        ("chat_template.jinja", "always", "the chat template of the pack 'chat' does not write messages of the role"),
        ("tokenizer.json", "{}", "the tokenizer that travels with the pack 'chat': it has no tokenizer that"),
    ],
)
def test_a_refusal_names_the_pack_that_brought_it(made, name: str, text: str, message: str) -> None:
    _, base, packs = made
    pack = packs["chat"]
    files = {**pack.carried.files, name: text.encode()}
    carried = Carried(files, {key: value for key, value in pack.carried.from_base.items() if key != name})
    with pytest.raises(UserError, match=message):
        prompt_text(Skillpack(pack.card, pack.tensors, carried).voice(base).tokenizer, "ab")


def test_what_travels_counts_in_the_bytes(made) -> None:
    place, _, packs = made
    for name, pack in packs.items():
        folder = place / "packs" / name
        assert pack.card.bytes.total == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert pack.nbytes == pack.card.bytes.total
        assert pack.card.bytes.metadata >= pack.carried.nbytes


def test_what_travels_counts_in_the_budget(made, tmp_path: Path) -> None:
    place, opened, _ = made
    delta = Delta.between(place / "base", place / "chat")
    small = zip_delta(delta, opened, None, ZipConfig(budget=20_000), name="p").save_pretrained(tmp_path / "p")
    assert sum(file.stat().st_size for file in small.rglob("*") if file.is_file()) <= 20_000


def test_every_row_of_a_batch_has_its_own_prompt_and_ends(made) -> None:
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    names = ["chat", None, "other", "plain", "chat"]
    prompts = ["hello", "hello", "hello", "a longer one", "x"]
    sampling = Sampling(max_new_tokens=30)
    mixed = weave.generate(prompts, names, sampling)
    ended = set()
    for prompt, name, reply in zip(prompts, names, mixed, strict=True):
        voice = weave.voice(name)
        with weave.packed_model.every_row(name):
            alone = generate_answers(opened.model, voice.tokenizer, [prompt], sampling, voices=[voice])[0][0]
        assert (reply.text, reply.ended == "answer") == (alone.text, alone.ended)
        ended.add((name, reply.ended))
    assert ("chat", "answer") in ended  # twenty letters end it: without its own ends it would be cut off
    rendered = {name: prompt_text(weave.voice(name).tokenizer, "hi") for name in ("chat", "other", None)}
    assert rendered == {"chat": "[user]hi|[assistant]", "other": "[user]hi|=>", None: "hi"}


def test_the_ends_are_those_of_the_tune(made) -> None:
    place, opened, packs = made
    weave = Weave.of(opened, packs)
    for name in ("chat", "other", "plain"):
        tune = open_base(place / name, device="cpu")
        assert weave.voice(name).stops(opened.model) == stop_tokens(tune.model, tune.tokenizer)
    assert weave.voice(None).stops(opened.model) == [1]


def test_a_pack_answers_as_its_tune_does(made) -> None:
    """Eight bits and every rank leave the greedy tokens of these tunes as they are."""
    place, _, _ = made
    for name in ("chat", "other"):
        streamed = {}
        for target in (place / name, place / "packs" / name):
            engine, file = open_engine(str(target), device="cpu"), io.StringIO()
            streamed[target] = engine.stream("hello", engine.default, Sampling(max_new_tokens=3), file), file.getvalue()
        (tune, seen), (pack, shown) = streamed.values()
        assert tune.text == pack.text
        assert seen == shown


def test_model_defaults_are_the_packs(made, tmp_path: Path) -> None:
    place, opened, _ = made
    folder = save(tmp_path / "tuned", tuned(model(), seed=4), tokenizer())
    banned = [*range(3, 60)]
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": banned}))
    pack = zip_delta(Delta.between(place / "base", folder), opened, None, BIG, name="p")
    weave = Weave.of(opened, {"p": pack})
    texts = {}
    for defaults in (True, False):
        sampling = Sampling(max_new_tokens=12, model_defaults=defaults)
        texts[defaults] = [reply.text for reply in weave.generate(["abc", "abc"], ["p", None], sampling)]
    letters = {chr(id_ + 29) for id_ in banned}
    assert not letters & set(texts[True][0])
    assert texts[True][1] == texts[False][1]  # the base's file asks for nothing


def test_a_weave_copies_what_travels(made, tmp_path: Path) -> None:
    place, opened, packs = made
    given = {"chat": place / "packs" / "chat", "renamed": packs["other"]}
    folder = Weave.write(tmp_path / "weave", opened, given)
    weave = Weave.from_pretrained(folder, base=opened)
    assert weave.voice("chat").tokenizer.chat_template == TEMPLATE
    assert weave.voice("renamed").tokenizer.chat_template == OTHER


def test_a_delta_answers_with_what_it_carries(made, tmp_path: Path) -> None:
    place, opened, _ = made
    delta = Delta.from_pretrained(Delta.between(place / "base", place / "chat").save_pretrained(tmp_path / "delta"))
    applied = delta.apply(opened)
    assert applied.tokenizer.chat_template == TEMPLATE
    assert 59 in stop_tokens(applied.model, applied.tokenizer)
    assert opened.model.generation_config.eos_token_id == 1


def test_calibration_prompts_are_written_by_the_tune(made, monkeypatch: pytest.MonkeyPatch) -> None:
    place, opened, _ = made
    seen = []
    real = source.calibration_rows
    monkeypatch.setattr(
        source, "calibration_rows", lambda model, speaks, *rest: seen.append(speaks) or real(model, speaks, *rest)
    )
    delta = Delta.between(place / "base", place / "chat")
    settings = ZipConfig(budget="1MB", activation_aware=True)
    zip_delta(delta, opened, [("hello", "world")], settings, name="p")
    assert seen[0].chat_template == TEMPLATE


def test_calibration_reads_added_tokens(tmp_path: Path) -> None:
    base = save(tmp_path / "base", model(98), tokenizer())
    folder = save(tmp_path / "tuned", tuned(model(98), 100), tokenizer("<a>", "<b>"))
    settings = ZipConfig(budget="1MB", activation_aware=True)
    pairs = [("<a>x", "<b>")]  # ids 98 and 99: behind the rows of the base
    pack = zip_delta(Delta.between(base, folder), open_base(base, device="cpu"), pairs, settings, name="p")
    assert pack.card.entries["lm_head.weight.rows"].shape == (100, 32)
    with pytest.raises(UserError, match=r"calibration example 1 holds the token '<c>' \(id 100\)"):
        folder = save(tmp_path / "more", tuned(model(98), 100), tokenizer("<a>", "<b>", "<c>"))
        zip_delta(Delta.between(base, folder), open_base(base, device="cpu"), [("<c>", "x")], settings, name="p")


def test_conversations_with_tools_are_held_in_the_packs_own_words(made) -> None:
    """The base has no template and refuses; each pack is asked with its own, and stops at its own ends."""
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    use, names = ConversationSettings(instruction="", max_tokens=24), ["other", "chat", "other"]
    with Toolbox() as box:
        mixed = weave.generate(["hello", "hello", "x"], names, tools=OpenTools(box, use))
        with pytest.raises(UserError, match="chat template"):
            weave.generate(["hello"], tools=OpenTools(box, use))
    plain = weave.generate(["hello", "hello", "x"], names, Sampling(max_new_tokens=24))
    assert [
        reply.conversation.last.removesuffix(reply.conversation.last[-1:]) for reply in mixed if reply.ended == "answer"
    ] == [reply.text for reply, held in zip(plain, mixed, strict=True) if held.ended == "answer"]
    assert any(reply.ended == "answer" for reply in mixed)
    assert opened.model.generation_config.eos_token_id == 1


def test_a_prompt_that_is_too_long_names_the_pack_whose_template_wrote_it(made) -> None:
    _, opened, packs = made
    weave, long = Weave.of(opened, packs), "a" * 300
    with pytest.raises(UserError, match=r"prompt 2 has \d+ tokens, written by the chat template of .*chat"):
        weave.generate(["hello", long], ["other", "chat"])
    with Toolbox() as box:
        tools = OpenTools(box, ConversationSettings(instruction=""))
        with pytest.raises(UserError, match=r"prompt 2 has .* tools, written by the chat template of .*chat"):
            weave.generate(["hello", long], ["other", "chat"], tools=tools)


def test_requests_of_all_kinds_are_answered_as_they_are_alone(made) -> None:
    """Token ids, two samplings and tools in one call; the order of the requests is that of the replies."""
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    ids = prompt_ids(weave.voice("chat").tokenizer, "hello")
    short, long = Sampling(max_new_tokens=2), Sampling(max_new_tokens=5)
    with Toolbox() as box:
        tools = OpenTools(box, ConversationSettings(instruction="", max_tokens=8))
        requests = [
            Request("hello", "chat", long),
            Request("hello", "other", short, tools),
            Request(ids, "chat", short),
            Request("hello", None, long),
            Request("x", "chat", short, tools),
        ]
        together = weave.answer(requests)
        assert together == [weave.answer([request])[0] for request in requests]
        assert together[2].text == weave.generate(["hello"], "chat", short)[0].text
        with pytest.raises(UserError, match="token ids cannot be told of tools"):
            weave.answer([Request(ids, "chat", short, tools)])


def test_a_conversation_draws_from_the_seed_of_its_request_alone(made) -> None:
    """Neither its place in the list nor the other requests change its draws."""
    _, opened, packs = made
    weave = Weave.of(opened, packs)
    with Toolbox() as box:
        tools = OpenTools(box, ConversationSettings(instruction="", max_tokens=8))
        drawn = [Request("hello", "chat", Sampling(temperature=2.0, seed=seed), tools) for seed in (5, 6, 7)]
        replies = weave.answer(drawn)
        assert len({reply.record["conversation"] for reply in replies}) > 1
        assert weave.answer(drawn[::-1]) == replies[::-1]
        assert weave.answer(drawn[1:2]) == replies[1:2]
        # generate() gives prompt number i the seed of its sampling + i.
        sampling = Sampling(temperature=2.0, seed=5)
        assert weave.generate(["hello"] * 3, "chat", sampling, tools=tools) == replies


def test_every_prompt_is_checked_before_any_is_answered_and_named_by_its_place(made, tmp_path: Path) -> None:
    place, opened, packs = made
    folder = Weave.write(tmp_path / "w", opened, {"chat": place / "packs" / "chat", "plain": packs["plain"]})
    weave = Weave.from_pretrained(folder, base=opened)
    long = "x" * opened.model.config.max_position_embeddings
    with Toolbox() as box:
        tools = OpenTools(box, ConversationSettings(instruction=""))
        plain, conversation = Request("hello", None), Request("hello", "chat", tools=tools)
        for last in (Request(long, "chat"), Request(long, "chat", tools=tools)):
            where = f"by the chat template of the pack 'chat' of the weave in {folder};"
            with pytest.raises(UserError, match=rf"prompt 3 has \d+ tokens.*{where}"):
                weave.answer([plain, conversation, last], streamer=_Refusing())


class _Refusing:
    """A streamer for an answer that must not begin."""

    def put(self, value: object) -> None:
        raise AssertionError("an answer was begun")

    def end(self) -> None:
        raise AssertionError("an answer was ended")
