"""Packs as PEFT adapters: what PEFT makes of them is what ``unzip`` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from helpers.micro import micro_tokenizer, save_micro
from skillweave.base import fingerprint, open_base
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError
from skillweave.micro.tokenizer import VOCABULARY
from skillweave.pack import BaseRef, Codec, DifferenceEntry, Exported, FactorsEntry, Skillpack, export_lora
from skillweave.pack.schema import PackCard
from skillweave.skillzip import ZipConfig, zip_delta

IDS = torch.arange(5, 25).view(2, 10)


def tuned_by(base: Path, folder: Path, change: float = 0.05, rows: int = 0, **options: Any) -> Path:
    """Return a fine-tune of the base: a low-rank change of every linear weight, and of norms if ``options`` say so."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    with torch.no_grad():
        for at, (name, parameter) in enumerate(model.named_parameters()):
            rank = 2 + at % 4
            if parameter.dim() == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                low = torch.randn(parameter.shape[0], rank) @ torch.randn(rank, parameter.shape[1])
                parameter += change * low / low.norm() * parameter.norm()
            elif parameter.dim() == 1 and options.get("vectors"):
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    return folder


def packed(base: Path, tuned: Path, **settings: Any) -> Skillpack:
    config = ZipConfig(**{"budget": "1MB", "bits": 8, **settings})
    return zip_delta(Delta.between(base, tuned), open_base(base, device="cpu"), None, config, name="x")


def peft_logits(base: Path, adapter: Path, rows: int | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, adapter).eval()(IDS).logits


def check(base: Path, pack: Skillpack, done: Exported, atol: float = 1e-4) -> None:
    """Check that PEFT's model equals the unzipped one and used every key, and that the adapter gives the same delta."""
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
        wanted = pack.unzip().apply(open_base(base, device="cpu")).model(IDS).logits
    found = peft_logits(base, done.folder, done.rows)
    assert float((wanted[..., : plain.shape[-1]] - plain).abs().max()) > 20 * atol
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)
    delta, unzipped = Delta.from_lora(done.folder, base), pack.unzip()
    assert set(delta.names()) == {name for name in unzipped.names() if name not in done.left_out}
    for name in delta.names():
        ours, theirs = delta.tensor(name).float(), unzipped.tensor(name).float()
        if delta.whole(name) and not unzipped.whole(name):
            before = load_file(base / "model.safetensors")[name]
            ours[: len(before)] -= before
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def pack(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Skillpack:
    return packed(micro_base, tuned_by(micro_base, tmp_path_factory.mktemp("tuned") / "tuned"))


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize("settings", [{}, {"bits": 4}, {"codec": "svd"}, {"smoothing": 0.5}], ids=str)
def test_peft_makes_of_it_what_unzip_makes(micro_base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    tuned = tuned_by(micro_base, tmp_path / "tuned")
    calibration = [("a b c", "d e")] if "smoothing" in settings else None
    config = ZipConfig(**{"ratio": 0.5, "bits": 8, **settings})
    made = zip_delta(
        Delta.between(micro_base, tuned), open_base(micro_base, device="cpu"), calibration, config, name="x"
    )
    done = export_lora(made, tmp_path / "out")
    assert {file.name for file in done.folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not done.left_out
    assert done.rounding < 1e-6
    check(micro_base, made, done)


def test_one_rank_for_vllm_or_each_its_own(micro_base: Path, tmp_path: Path, pack: Skillpack) -> None:
    """vLLM reads r, lora_alpha, target_modules, bias and modules_to_save, and no patterns."""
    ranks = {name: entry.rank for name, entry in pack.card.entries.items()}
    assert len(set(ranks.values())) > 1
    one = export_lora(pack, tmp_path / "one", base=micro_base)
    config = json.loads((one.folder / "adapter_config.json").read_text())
    assert one.rank == config["r"] == config["lora_alpha"] == max(ranks.values())
    assert not config["rank_pattern"]
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    for name, tensor in load_file(one.folder / "adapter_model.safetensors").items():
        assert tensor.shape[0 if ".lora_A." in name else 1] == one.rank
    own = export_lora(pack, tmp_path / "own", keep_ranks=True)
    stored = load_file(own.folder / "adapter_model.safetensors")
    for name, rank in ranks.items():
        assert stored[f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"].shape[0] == rank
    check(micro_base, pack, one)
    check(micro_base, pack, own)


def test_targets_have_short_names_where_those_mean_the_same(micro_base: Path, tmp_path: Path, pack: Skillpack) -> None:
    done = export_lora(pack, tmp_path / "all")
    targets = json.loads((done.folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted({name.split(".")[-2] for name in pack.card.entries})
    some = pack.card.model_copy(deep=True)
    gone = "model.layers.0.self_attn.q_proj.weight"
    some.entries = {name: entry for name, entry in some.entries.items() if name != gone}
    rest = Skillpack(some, {name: tensor for name, tensor in pack.tensors.items() if not name.startswith(gone)})
    done = export_lora(rest, tmp_path / "some")
    targets = json.loads((done.folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(name.removesuffix(".weight") for name in rest.card.entries)
    check(micro_base, rest, done)


def test_norms_travel_as_modules_to_save_or_are_left_out(micro_base: Path, tmp_path: Path) -> None:
    made = packed(micro_base, tuned_by(micro_base, tmp_path / "tuned", vectors=True), other="keep")
    done = export_lora(made, tmp_path / "out")
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert "model.norm" in config["modules_to_save"]
    assert len(done.saved) == 5
    check(micro_base, made, done)
    with pytest.raises(UserError, match=r"would leave out \d+\.\d% of the change .*leave out --lora-only, or say"):
        export_lora(made, tmp_path / "factors", lora_only=True)
    assert not (tmp_path / "factors").exists()
    done = export_lora(made, tmp_path / "factors", lora_only=True, allow_left_out=True)
    assert sorted(done.left_out) == sorted(name for name in made.card.entries if "norm" in name)
    assert 0.05 < sum(done.left_out.values()) < 1
    assert all("lora_" in name for name in load_file(done.folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_added_tokens_travel_as_peft_stores_them(tmp_path: Path, tie: bool) -> None:
    base = save_micro(tmp_path / "base", tie=tie)
    made = packed(base, tuned_by(base, tmp_path / "tuned", rows=3))
    done = export_lora(made, tmp_path / "out")
    assert done.rows == len(VOCABULARY) + 3
    stored = load_file(done.folder / "adapter_model.safetensors")
    assert ("base_model.model.lm_head.weight" in stored) != tie
    check(base, made, done, atol=2e-4)


GPT2 = {"vocab_size": len(VOCABULARY), "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}


def test_biases_and_layers_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2: Conv1D layers, whose weight is (in, out), and a bias beside each."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.2)).save_pretrained(tmp_path / "base")
    micro_tokenizer().save_pretrained(tmp_path / "base")
    layer = "transformer.h.0"
    matrices = [f"{layer}.attn.{name}.weight" for name in ("c_attn", "c_proj")]
    vectors = [f"{layer}.attn.c_attn.bias", f"{layer}.mlp.c_fc.bias", "transformer.ln_f.weight"]
    made = factors_pack(tmp_path / "base", matrices, vectors)
    done = export_lora(made, tmp_path / "out")
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    assert config["bias"] == "all"
    check(tmp_path / "base", made, done)


def factors_pack(base: Path, matrices: list[str], vectors: list[str] | None = None) -> Skillpack:
    """Return a pack with random factors of rank 2 for some matrices, and random differences for some vectors."""
    weights = load_file(base / "model.safetensors")
    entries: dict[str, Any] = {}
    tensors = {}
    for name in matrices:
        rows, columns = weights[name].shape
        entries[name] = FactorsEntry(shape=(rows, columns), rank=2)
        tensors[f"{name}.A"] = (0.3 * torch.randn(rows, 2)).bfloat16()
        tensors[f"{name}.B"] = (0.3 * torch.randn(2, columns)).bfloat16()
    for name in vectors or []:
        entries[name] = DifferenceEntry(shape=tuple(weights[name].shape))
        tensors[name] = 0.1 * torch.randn(weights[name].shape)
    ref = BaseRef(ref=str(base), fingerprint=fingerprint(base))
    return Skillpack(PackCard(name="x", base=ref, codec=Codec(name="svd"), entries=entries), tensors)


def test_experts_go_by_the_names_of_their_files(tmp_path: Path) -> None:
    """PEFT and vLLM name each expert as the base's files do; PEFT joins the experts while it loads them."""
    torch.manual_seed(0)
    shape = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "pad_token_id": 0}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **heads, **experts)).save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    made = factors_pack(tmp_path / "base", [name for name in weights if "proj" in name])
    done = export_lora(made, tmp_path / "out")
    assert done.modules == 4 + 3 * 4
    write_tuned(tmp_path / "base", made.unzip(), tmp_path / "full", dtype="float32")
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "full")(IDS).logits
    torch.testing.assert_close(peft_logits(tmp_path / "base", done.folder), wanted, atol=1e-4, rtol=1e-4)
    assert set(Delta.from_lora(done.folder, tmp_path / "base").names()) == set(made.card.entries)


def test_a_lora_comes_back(micro_base: Path, tmp_path: Path) -> None:
    """An adapter that is zipped at its full rank and exported is the same again, up to the rounding to 8 bits."""
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(micro_base),
        LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    delta = Delta.from_lora(tmp_path / "adapter", micro_base)
    config = ZipConfig(budget="1MB", bits=8)
    made = zip_delta(delta, open_base(micro_base, device="cpu"), None, config, name="x")
    done = export_lora(made, tmp_path / "out")
    check(micro_base, made, done)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(micro_base)(IDS).logits
    before, after = peft_logits(micro_base, tmp_path / "adapter"), peft_logits(micro_base, done.folder)
    assert float((after - before).norm() / (before - plain).norm()) < 0.05


def test_a_narrower_type_is_measured(micro_base: Path, tmp_path: Path, pack: Skillpack) -> None:
    done = export_lora(pack, tmp_path / "out", dtype=torch.bfloat16)
    assert 1e-4 < done.rounding < 1e-2
    assert {tensor.dtype for tensor in load_file(done.folder / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    stored = Delta.from_lora(done.folder, micro_base)
    lost = total = 0.0
    for name in stored.names():
        exact = pack.decode(name)
        lost += float((stored.tensor(name) - exact).square().sum())
        total += float(exact.square().sum())
    assert done.rounding == pytest.approx((lost / total) ** 0.5, rel=1e-3)


def test_another_base_and_a_pack_without_factors_are_refused(micro_base: Path, tmp_path: Path, pack: Skillpack) -> None:
    with pytest.raises(UserError, match="the pack 'x' belongs on"):
        export_lora(pack, tmp_path / "out", base=save_micro(tmp_path / "other", seed=9))
    tuned = tmp_path / "tuned"
    model = AutoModelForCausalLM.from_pretrained(micro_base)
    model.model.norm.weight.data += 0.1
    model.save_pretrained(tuned)
    with pytest.raises(UserError, match="has no matrix in low-rank factors"):
        export_lora(packed(micro_base, tuned, other="keep"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape"), [("model.x", (2,)), ("model.norm.weight", (3,)), ("model.layers.0.mlp.up_proj.weight", (2, 2))]
)
def test_a_pack_that_does_not_fit_its_base_is_no_adapter(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    """The base does not have the tensor, or has it in another shape."""
    base = save_micro(tmp_path / "base")
    pack = packed(base, tuned_by(base, tmp_path / "tuned"))
    for key in [key for key in pack.tensors if key.startswith(name)]:
        del pack.tensors[key]
    pack.card.entries[name] = DifferenceEntry(kind="difference", shape=shape)
    pack.tensors[name] = torch.zeros(shape)
    with pytest.raises(UserError, match=f"the delta changes '{name}'"):
        export_lora(pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()
