"""What is hashed is what is loaded; and no code of a folder, whatever asks for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers.micro import micro_tokenizer
from skillweave.base import fingerprint, open_base
from skillweave.base import load as load_module
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError

SRC = Path(load_module.__file__).parents[1]
SHAPE = {
    "vocab_size": 110, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
MOE = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
HALVES = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_num_value_heads": 4,
          "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip


def family(name: str) -> torch.nn.Module:
    """A random micro model of a family."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    more = {**MOE, **(HALVES if "Qwen3Next" in name else {}), "state_size": 8, "tie_word_embeddings": "Youtu" in name}
    known = set(vars(cls.config_class()))
    config = cls.config_class(**SHAPE, **{key: value for key, value in more.items() if key in known})
    return cls(config).eval()


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "Gemma2ForCausalLM",
        "GPTNeoXForCausalLM",
        "MambaForCausalLM",  # its infinite limits are no JSON
        "YoutuForCausalLM",  # transformers sets the padding token's row to zero while loading
        "MixtralForCausalLM",  # its experts are put together, its gate is renamed
        "Qwen2MoeForCausalLM",
        "Qwen3NextForCausalLM",
    ],
)
def test_a_family_is_opened_compared_and_written_as_it_is(name: str, tmp_path: Path) -> None:
    model = family(name)
    for folder in ("base", "tuned"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / folder)
        micro_tokenizer().save_pretrained(tmp_path / folder)
    # ``save_pretrained`` of the second one has the values that the model still holds.
    out = write_tuned(tmp_path / "base", Delta.between(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    for folder, exact in ((tmp_path / "tuned", True), (out, False)):
        opened = open_base(folder, device="cpu", dtype="float32")
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(opened.model.state_dict()[key], tensor, rtol=0, atol=0 if exact else 1e-6)
    files = [set(load_file(folder / "model.safetensors")) for folder in (tmp_path / "base", out)]
    assert files[0] == files[1], "what is written has the names that other tools know"


def test_experts_in_another_form_are_told_with_a_way_to_one_form(tmp_path: Path) -> None:
    """The base has each expert by itself; the tuned model was saved as it lies in memory, all experts in one tensor."""
    model = family("MixtralForCausalLM")
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.add_(0.01)
    model.config.save_pretrained(tmp_path / "tuned")
    save_file(model.state_dict(), tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    for sides in (("base", "tuned"), ("tuned", "base")):
        with pytest.raises(UserError, match="stores the same weights in other pieces"):
            Delta.between(*(tmp_path / side for side in sides))
    joined = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    joined.load_state_dict(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").state_dict())
    joined.save_pretrained(tmp_path / "joined")
    delta = Delta.between(tmp_path / "base", tmp_path / "joined")
    assert len(delta.names()) == model.config.num_local_experts


def test_a_value_that_the_model_does_not_hold_is_put_back(micro_base: Path, monkeypatch, capsys) -> None:
    """As if a class wrote into its weights after they were loaded."""
    finish = transformers.PreTrainedModel._finalize_model_loading

    def spoil(model, *args, **kwargs):
        report = finish(model, *args, **kwargs)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
        return report

    monkeypatch.setattr(transformers.PreTrainedModel, "_finalize_model_loading", staticmethod(spoil))
    base = open_base(micro_base, device="cpu")
    assert fingerprint(base.model) == base.fingerprint == fingerprint(micro_base)
    assert "changed 'model.layers.1.mlp.up_proj.weight' while loading" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_compared_in_the_dtype_they_are_loaded_in(tmp_path: Path, dtype: str, capsys) -> None:
    model = family("LlamaForCausalLM").bfloat16()
    model.save_pretrained(tmp_path)
    micro_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = open_base(tmp_path, device="cpu", dtype=dtype).model
    for name, tensor in mixed.items():
        assert torch.equal(opened.state_dict()[name], tensor.to(getattr(torch, dtype)))
    assert "changed" not in capsys.readouterr().err


def test_every_call_into_a_folder_says_that_its_code_is_not_run() -> None:
    """All calls of transformers' ``from_pretrained`` and ``from_config`` in the product name trust_remote_code=False.

    Our own artefacts, PEFT's adapters and configs, which hold no code, have methods of the same names.
    """
    own = {"Delta", "Skillpack", "Weave", "PeftModel", "Router", "Task"}
    seen = []
    for file in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id in {*own, "cls"}:
                continue
            said = {word.arg: word.value for word in node.keywords}
            value = said.get("trust_remote_code")
            seen.append(file.name)
            assert isinstance(value, ast.Constant), f"{file}:{node.lineno} does not say trust_remote_code=False"
            assert value.value is False, f"{file}:{node.lineno} does not say trust_remote_code=False"
    assert {"open.py", "load.py", "architecture.py", "bundled.py"} <= set(seen)
