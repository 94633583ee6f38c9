"""The micro room: its tokenizer, its models, and bases that are trained once and kept."""

from __future__ import annotations

import json
import string
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from skillweave.base import Sampling, answer_ids, generate, open_base, prompt_ids
from skillweave.errors import UserError
from skillweave.methods.training import TrainingSettings
from skillweave.micro import MicroShape, micro_base, micro_model, micro_tokenizer, train
from skillweave.tasks import load_task

SHAPE = MicroShape(context=32)
BRIEF = TrainingSettings(steps=3, batch_size=4, learning_rate=3e-3)
EXAMPLES = [(f"say {digit}", str(digit) * 3) for digit in range(10)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written_by(folder: Path, *_) -> dict:
    """Stands in for the training where only the keeping is looked at."""
    (folder / "model.safetensors").write_text("weights")
    return {"steps": 3}


# the tokenizer


def test_every_character_is_one_token_and_comes_back():
    tokenizer = micro_tokenizer()
    text = "".join(map(chr, range(32, 127))) + "\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(set(ids)) == 96
    assert tokenizer.decode(ids) == text
    assert tokenizer("é\t")["input_ids"] == tokenizer("??")["input_ids"]
    assert tokenizer("")["input_ids"] == []


def test_ids_are_those_that_older_models_were_trained_with():
    tokenizer = micro_tokenizer()
    named = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", " ", "~", "\n", "<tool>"]
    assert tokenizer.convert_tokens_to_ids(named) == [0, 1, 2, 3, 4, 5, 99, 100, 101]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 102)


def test_a_chat_is_role_text_end_for_each_message():
    tokenizer = micro_tokenizer()
    chat = [
        {"role": role, "content": text}
        for role, text in [("system", "be"), ("user", "1+1"), ("tool", "2"), ("user", "?")]
    ]
    ids = prompt_ids(tokenizer, chat)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<system>",
        "b",
        "e",
        "<end>",
        "<user>",
        "1",
        "+",
        "1",
        "<end>",
        "<tool>",
        "2",
        "<end>",
        "<user>",
        "?",
        "<end>",
        "<assistant>",
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "be1+12?"
    assert tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, "42")) == ["4", "2", "<end>"]


# the model


def test_a_model_has_the_shape_it_was_asked_for_and_knows_every_token():
    shape = MicroShape(hidden=48, layers=3, heads=6, kv_heads=3, intermediate=80, context=40)
    model = micro_model(shape, 0)
    layer = 2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 80 + 2 * 48  # queries and output, keys and values, MLP, norms
    assert sum(parameter.numel() for parameter in model.parameters()) == 102 * 48 + 3 * layer + 48
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    logits = model(torch.arange(40)[None] + 62).logits
    assert logits.shape == (1, 40, 102)
    assert logits.isfinite().all()
    untied = micro_model(shape.model_copy(update={"tie": False}), 0)
    assert sum(parameter.numel() for parameter in untied.parameters()) == 2 * 102 * 48 + 3 * layer + 48


def test_a_seed_is_a_model():
    first, again, other = (micro_model(SHAPE, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


# a base


def test_a_base_learns_a_rule_in_seconds(cache: Path):
    task = load_task(
        {
            "source": "builtin",
            "name": "micro_reverse",
            "config": {"least": 2, "most": 3, "letters": 6},
            "splits": {"train": 160, "calibration": 0, "test": 60},
        }
    )
    examples = [(entry.prompt, entry.answer) for entry in task.split("train")]
    settings = TrainingSettings(steps=150, batch_size=32, learning_rate=5e-3)
    folder = micro_base(examples, shape=SHAPE, training=settings, seed=0, name="reverse")
    assert folder.parent == cache / "micro"
    assert folder.name.startswith("reverse-")
    figures = json.loads((folder / "micro.json").read_text())["figures"]
    assert figures["loss_first"] > 3
    assert figures["loss_last"] < 0.2
    base = open_base(folder, device="cpu")
    assert base.model.dtype == torch.float32
    assert base.model.config.use_cache
    test = task.split("test")
    answers = generate(base.model, base.tokenizer, [entry.prompt for entry in test], Sampling(max_new_tokens=6))
    scores = [task.score(answer, entry) for (answer,), entry in zip(answers, test, strict=True)]
    assert sum(scores) / len(scores) > 0.5  # of prompts it never saw; 0.68 to 0.93 over five seeds


def test_the_same_arguments_give_the_same_bits_on_any_number_of_threads(tmp_path: Path, monkeypatch):
    files = []
    for threads in (1, 2):
        monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        try:
            folder = micro_base(EXAMPLES, shape=SHAPE, training=BRIEF, seed=0)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert {"model.safetensors", "config.json", "tokenizer.json", "micro.json"} <= set(files[0])


def test_a_base_is_trained_from_the_model_of_its_seed_and_another_seed_is_another(cache: Path):
    slow = TrainingSettings(steps=1, batch_size=4, learning_rate=1e-6)
    first, other = (
        AutoModelForCausalLM.from_pretrained(micro_base(EXAMPLES, shape=SHAPE, training=slow, seed=seed)).state_dict()
        for seed in (3, 4)
    )
    start = micro_model(SHAPE, 3).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(first[name], start[name], rtol=0, atol=2e-6)
    assert not torch.equal(first[name], start[name])
    assert (first[name] - other[name]).abs().max() > 0.1


def test_a_base_that_is_there_is_not_trained_again(cache: Path, monkeypatch):
    monkeypatch.setattr(train, "_train", written_by)
    ask = {"shape": SHAPE, "training": BRIEF, "seed": 0}
    folder = micro_base(EXAMPLES, **ask)
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    assert micro_base(EXAMPLES, **ask) == folder
    monkeypatch.setattr(train, "_train", written_by)
    others = [
        micro_base(EXAMPLES[1:], **ask),
        micro_base(EXAMPLES[::-1], **ask),
        micro_base([*EXAMPLES[:9], ("say 9", "99")], **ask),
        micro_base(EXAMPLES, **{**ask, "seed": 1}),
        micro_base(EXAMPLES, **{**ask, "shape": MicroShape(context=33)}),
        micro_base(EXAMPLES, **{**ask, "training": BRIEF.model_copy(update={"weight_decay": 0.1})}),
        micro_base(EXAMPLES, **ask, name="other"),
    ]
    monkeypatch.setattr(train, "version", lambda package: "0.0")
    others.append(micro_base(EXAMPLES, **ask))
    assert len({folder, *others}) == 9


def test_of_those_who_ask_at_once_one_trains(cache: Path, monkeypatch):
    trained = []

    def slow(folder: Path, *_) -> dict:
        trained.append(folder)
        time.sleep(0.3)
        return written_by(folder)

    monkeypatch.setattr(train, "_train", slow)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(micro_base(EXAMPLES, shape=SHAPE, training=BRIEF, seed=0)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_training_that_failed_leaves_nothing_and_is_begun_again(cache: Path, monkeypatch):
    def broken(folder: Path, *_) -> dict:
        written_by(folder)
        raise RuntimeError("cut off")

    monkeypatch.setattr(train, "_train", broken)
    with pytest.raises(RuntimeError, match="cut off"):
        micro_base(EXAMPLES, shape=SHAPE, training=BRIEF, seed=0)
    assert not (cache / "micro").exists()
    monkeypatch.setattr(train, "_train", written_by)
    assert (micro_base(EXAMPLES, shape=SHAPE, training=BRIEF, seed=0) / "micro.json").is_file()


def test_examples_that_do_not_fit_are_refused_not_left_out(cache: Path):
    # <user> say 0 <end> <assistant> 000 <end>: twelve tokens
    assert micro_base(EXAMPLES, shape=MicroShape(context=12), training=BRIEF, seed=0).is_dir()
    with pytest.raises(UserError, match=r"10 of 10 examples are longer than .* 11 tokens"):
        micro_base(EXAMPLES, shape=MicroShape(context=11), training=BRIEF, seed=0)
    with pytest.raises(UserError, match="1 of 11 examples"):
        micro_base([*EXAMPLES, ("say", string.ascii_letters)], shape=SHAPE, training=BRIEF, seed=0)
    with pytest.raises(UserError, match="at least one example"):
        micro_base([], shape=SHAPE, training=BRIEF, seed=0)


def test_the_folder_is_an_ordinary_hugging_face_one(cache: Path):
    folder = micro_base(EXAMPLES, shape=SHAPE, training=BRIEF, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert prompt_ids(tokenizer, "hi") == prompt_ids(micro_tokenizer(), "hi")
    assert tokenizer.get_vocab() == micro_tokenizer().get_vocab()
    facts = json.loads((folder / "micro.json").read_text())
    assert (facts["seed"], facts["shape"], facts["training"]["steps"]) == (0, SHAPE.model_dump(), 3)
    assert facts["figures"]["steps"] == 3
