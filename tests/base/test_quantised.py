"""Quantised folders: read as the numbers that the codes stand for, or refused by the name of the method."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from helpers.micro import micro_tokenizer, save_micro
from skillweave.base import Checkpoint, fingerprint, open_base
from skillweave.base.quantised import dequantised
from skillweave.delta import Delta, write_tuned
from skillweave.errors import UserError

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 48]}


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [
        ((6, 8), (), None),
        ((6, 8), (1,), None),
        ((6, 8), (6,), None),
        ((6, 8), (6, 1), None),
        ((6, 8), (2, 4), None),
        ((6, 8), (2, 3), (4, 3)),  # the last block of each row and column is cut
        ((2, 6, 8), (2, 6, 1), None),
        ((2, 6, 8), (2, 2, 2), (4, 4)),
    ],
)
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_a_code_is_multiplied_by_the_scale_of_its_block(shape, grid, block, codes: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = (torch.randn(shape, generator=generator) * 20).to(codes)
    scales = torch.rand(grid, generator=generator) + 0.5
    numbers = dequantised(stored, scales, block)
    wide = scales if len(grid) > 1 else scales.reshape(-1, 1)
    rows, columns = shape[-2:]
    for index in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        *lead, i, j = index
        high, across = block or (rows // wide.shape[-2], columns // wide.shape[-1])
        high, across = (rows if wide.shape[-2] == 1 else high), (columns if wide.shape[-1] == 1 else across)
        assert float(numbers[tuple(index)]) == float(
            stored[tuple(index)].float() * wide[(*lead, i // high, j // across)]
        )


def test_a_byte_is_an_exponent() -> None:
    codes = torch.ones(2, 4, dtype=torch.float8_e4m3fn)
    assert dequantised(codes, torch.tensor([[126], [129]], dtype=torch.uint8)).tolist() == [[0.5] * 4, [4.0] * 4]


def as_fp8(folder: Path, out: Path, *, names: str = "weight_scale_inv", settings: dict | None = None) -> Path:
    """The folder with its layers' matrices as FP8 codes, one scale for each block of 48 x 48 (cut at the edges)."""
    shutil.copytree(folder, out)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "proj" not in name:
            stored[name] = tensor
            continue
        rows, columns = (math.ceil(size / 48) for size in tensor.shape)
        scales = torch.empty(rows, columns)
        codes = torch.empty_like(tensor)
        for i in range(rows):
            for j in range(columns):
                part = (slice(48 * i, 48 * (i + 1)), slice(48 * j, 48 * (j + 1)))
                scales[i, j] = tensor[part].abs().max() / 448
                codes[part] = tensor[part] / scales[i, j]
        stored[name] = codes.to(torch.float8_e4m3fn)
        stored[name.removesuffix("weight") + names] = scales
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    configure(out, quantization_config=settings or FP8)
    return out


def as_numbers(folder: Path, out: Path) -> Path:
    """The unquantised folder of what :func:`as_fp8` wrote, computed here."""
    shutil.copytree(folder, out)
    stored = load_file(folder / "model.safetensors")
    numbers = {}
    for name, tensor in stored.items():
        if name.endswith("scale_inv"):
            continue
        scales = stored.get(f"{name}_scale_inv")
        if scales is not None:
            wide = torch.kron(scales, torch.ones(48, 48))[: tensor.shape[0], : tensor.shape[1]]
            tensor = tensor.float() * wide
        numbers[name] = tensor
    save_file(numbers, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_an_fp8_folder_is_the_model_of_its_numbers(micro_base: Path, tmp_path: Path) -> None:
    codes = as_fp8(micro_base, tmp_path / "codes")
    plain = as_numbers(codes, tmp_path / "plain")
    assert fingerprint(codes) == fingerprint(plain)
    base = open_base(codes, device="cpu")
    assert base.fingerprint == fingerprint(base.model)
    assert not hasattr(base.model.config, "quantization_config")
    # A delta and the folder that is written from it are of numbers, too.
    tuned = save_micro(tmp_path / "tuned", seed=5)
    delta = Delta.between(codes, as_fp8(tuned, tmp_path / "tuned-codes"), dtype="float32")
    out = write_tuned(codes, delta, tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    wanted = AutoModelForCausalLM.from_pretrained(as_numbers(tmp_path / "tuned-codes", tmp_path / "tuned-plain"))
    written = AutoModelForCausalLM.from_pretrained(out)
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_compressed_tensors_floats_are_read(micro_base: Path, tmp_path: Path) -> None:
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "weight_block_size": [48, 48]}
    one = as_fp8(micro_base, tmp_path / "one", names="weight_scale", settings=settings)
    assert fingerprint(one) == fingerprint(as_fp8(micro_base, tmp_path / "two"))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "compressed-tensors", "format": "int-quantized",
         "config_groups": {"group_0": {"weights": {"symmetric": False}}}},
        {"quant_method": "zzz"},
        {"quant_method": None},
        {"format": "pack-quantized", "config_groups": {}},  # of compressed-tensors, as older files say it
        {"quant_method": ["fp8"]},
        FP8,  # the weights are plain
        {"quant_method": "mxfp4"},
        "fp8",
    ],
)  # fmt: skip
def test_other_methods_are_refused_with_advice(micro_base: Path, tmp_path: Path, settings: object) -> None:
    folder = Path(shutil.copytree(micro_base, tmp_path / "copy"))
    configure(folder, quantization_config=settings)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    with pytest.raises(UserError, match="unquantised") as caught:
        open_base(folder, device="cpu")
    assert not isinstance(method, str) or method in str(caught.value)
    assert "None" not in str(caught.value)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{Q_PROJ}_scale_inv", None, rf"'{Q_PROJ}' is a tensor of codes \(float8_e4m3fn\) with no scales"),
        (f"{Q_PROJ}_scale_inv", torch.ones(5, 2), r"has the shape \(5, 2\), which does not fit the codes"),
        (f"{Q_PROJ}_scale_inv", torch.ones(0), "does not fit the codes"),
        (Q_PROJ, torch.ones(64, 32, dtype=torch.int8), r"\(int8\) with scales"),
        (f"{Q_PROJ}_zero_point", torch.zeros(1), "with zero points"),
    ],
)
def test_codes_without_their_scales_are_named(micro_base: Path, tmp_path: Path, name: str, value, message: str) -> None:
    folder = as_fp8(micro_base, tmp_path / "codes")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = value
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        Checkpoint(folder)


def test_four_bit_blocks_of_gpt_oss(tmp_path: Path) -> None:
    """The table of E2M1 is that of the OCP specification of microscaling formats, section 5.3.3."""
    config = GptOssConfig(
        vocab_size=110,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_local_experts=2,
        num_experts_per_tok=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        eos_token_id=1,
        pad_token_id=0,
        layer_types=["full_attention"],
    )
    folder = tmp_path / "oss"
    GptOssForCausalLM(config).bfloat16().save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table = torch.tensor(values + [-value for value in values])
    tensors, wanted = load_file(folder / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for stem in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{stem}"
        experts, inner, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, inner // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 132, blocks.shape[:3], generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        pairs = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], -1)
        numbers = pairs.flatten(-2) * 2.0 ** (scales.float() - 127)[..., None]
        wanted[name] = numbers.flatten(-2).transpose(1, 2).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []}, dtype="bfloat16")
    base = open_base(folder, device="cpu", dtype="bfloat16")
    for name, tensor in wanted.items():
        assert torch.equal(base.checkpoint.tensor(name), tensor)
        assert torch.equal(base.model.state_dict()[name], tensor)
