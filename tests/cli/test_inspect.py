"""``skillweave inspect`` on deltas, adapters and models: what changed, how much, and what is odd."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.terminal import made, refused
from helpers.travelling import TEMPLATE, model, save, tokenizer, tuned
from skillweave.delta import Delta
from skillweave.skillzip import ZipConfig, zip_delta


def inspected(*arguments: object) -> dict:
    """The output of ``inspect --json``."""
    return json.loads(made("inspect", *arguments, "--json").out)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    base = save(folder / "base", model(), tokenizer())
    tune = tuned(model(), 114)
    with torch.no_grad():
        tune.model.norm.weight += 1
    save(folder / "tuned", tune, tokenizer("<a>", template=TEMPLATE), [1, 7])
    Delta.between(base, folder / "tuned").save_pretrained(folder / "delta")
    return folder


def test_a_delta_is_described_against_its_base(place: Path) -> None:
    found = inspected(place / "delta")
    groups = found["groups"]
    assert (found["kind"], found["base_at_hand"], found["token_rows"]) == ("delta", True, 114)
    assert groups["model.layers.*.self_attn.q_proj.weight"]["tensors"] == 2
    # the norm grew from 1 to 2 in each of 32 channels: as large as it was; a pack keeps it as it is
    norm = groups["model.norm.weight"]
    assert (norm["relative"], norm["kept"]) == (1.0, True)
    assert found["kept"] == ["model.norm.weight"]
    # only the added rows count as a change of the embedding
    delta = Delta.from_pretrained(place / "delta")
    rows = delta.tensor("model.embed_tokens.weight")[112:]
    assert groups["model.embed_tokens.weight"]["norm"] == pytest.approx(float(rows.norm()), rel=1e-3)
    assert set(found["travels"]) >= {"chat_template.jinja", "generation_config.json", "tokenizer.json"}
    told = made("inspect", place / "delta", "--tensors").out
    assert "114, the base has 112" in " ".join(told.split())
    assert "not a matrix: model.norm.weight" in told


def test_what_is_said_to_be_no_matrix_is_what_zip_drops(place: Path) -> None:
    from skillweave.base import open_base

    opened = open_base(place / "base", device="cpu")
    pack = zip_delta(
        Delta.from_pretrained(place / "delta"),
        opened,
        None,
        ZipConfig(ratio=1, bits=8, other="drop", allow_left_out=True),
        name="p",
    )
    assert pack.card.left_out == inspected(place / "delta")["kept"]


def test_a_delta_without_its_base_says_what_is_not_known(place: Path, tmp_path: Path) -> None:
    delta = Delta.from_pretrained(place / "delta")
    delta.base_ref = "nobody/nowhere"
    folder = delta.save_pretrained(tmp_path / "delta")
    found = inspected(folder)
    assert (found["base_at_hand"], found["kept"], found["kept_share"]) == (False, None, None)
    q = found["groups"]["model.layers.*.self_attn.q_proj.weight"]
    assert q["relative"] is None
    assert q["norm"] > 0
    assert "name it with --base" in " ".join(made("inspect", folder).out.split())
    assert inspected(folder, "--base", place / "base")["kept"] == ["model.norm.weight"]
    assert "belongs on" in refused("inspect", folder, "--base", place / "tuned")


def test_an_adapter_is_described_by_its_files(place: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True, bias="none")
    )
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer(template=TEMPLATE).save_pretrained(tmp_path / "adapter")
    found = inspected(tmp_path / "adapter")
    assert (found["kind"], found["form"], found["rank"], found["ranks_stored"]) == ("adapter", "LORA", 3, [3])
    assert found["layers"] == {"down_proj": 4, "q_proj": 4}
    assert found["unusual"] == {"use_rslora": True}
    assert "chat_template.jinja" in found["travels"]
    told = made("inspect", tmp_path / "adapter").out
    assert "use_rslora" in told


def test_a_model_is_described_with_what_contradicts_itself(place: Path, tmp_path: Path) -> None:
    found = inspected(place / "tuned")
    assert (found["kind"], found["token_rows"], found["tokens"]) == ("model", 114, 99)
    assert found["chat_templates"] == ["default"]
    assert found["end_tokens"] == {"config.json": 1, "generation_config.json": [1, 7], "tokenizer": 1}
    assert found["strange"] == []
    assert found["fingerprint"] in made("inspect", place / "tuned").out.replace("\n", "").replace(" ", "")
    odd = tmp_path / "odd"
    shutil.copytree(place / "base", odd)
    tokenizer(pad_token="[PAD]").save_pretrained(odd)
    config = json.loads((odd / "config.json").read_text())
    config |= {"dtype": "bfloat16", "torch_dtype": "float16"}
    (odd / "config.json").write_text(json.dumps(config))
    told = " ".join(inspected(odd)["strange"])
    for part in ("names two dtypes", "the files hold float32"):
        assert part in told
    (odd / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refused("inspect", odd)
    save(tmp_path / "short", model(98), tokenizer(pad_token="[PAD]"))
    assert inspected(tmp_path / "short")["strange"] == [
        "the embedding has 98 rows, and 1 of the tokenizer's tokens have none: [PAD]"
    ]


def test_a_gguf_file_is_described_as_the_model_in_it(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("gguf")
    from helpers.tiny_gguf import write_tiny_gguf

    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "tiny.gguf", kind="F16")
    found = inspected(tmp_path / "tiny.gguf")
    assert (found["kind"], found["architecture"]) == ("model", "LlamaForCausalLM")


def test_packs_and_weaves_have_json_too(bench, weave: Path) -> None:
    assert inspected(bench.pack)["kind"] == "skillpack"
    assert inspected(weave)["kind"] == "weave"


def test_what_strangers_wrote_cannot_steer_the_terminal(place: Path, tmp_path: Path) -> None:
    delta = Delta.from_pretrained(place / "delta")
    delta.provenance = {"method": "a\x1b[2Jb\rc"}
    folder = delta.save_pretrained(tmp_path / "delta")
    for arguments in ((folder,), (folder, "--json")):
        said = made("inspect", *arguments).out
        assert "\x1b" not in said
        assert "\r" not in said
