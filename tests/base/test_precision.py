"""The dtype of computation: bfloat16 if the hardware has it, float32 otherwise, also with narrow weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.micro import micro_model
from skillweave.base import Sampling, generate, open_base, precision
from skillweave.base.precision import (
    OVERRIDE,
    automatic_dtype,
    describe,
    multiply_in_float32,
    native_bf16,
    products_are_float32,
)
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "0")


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "1")


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu avx512f avx512_vnni", False),
        ("fpu avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("asimd bf16", True),
        ("not_bf16x", False),
        ("", False),
    ],
)
def test_the_flags_of_the_processor_decide(monkeypatch: pytest.MonkeyPatch, flags: str, native: bool) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags.split()))
    able, reason = native_bf16(CPU)
    assert able == native
    assert "this CPU has" in reason


def test_flags_are_read_as_linux_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("processor\t: 0\nflags\t\t: fpu avx512_bf16\n", "processor : 0\nFeatures : fp bf16\n"):
        precision._cpu_flags.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda self, encoding, text=text: text)
            assert precision._cpu_flags() & {"avx512_bf16", "bf16"}
    precision._cpu_flags.cache_clear()


def test_the_environment_answers_for_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, native in (("1", True), ("0", False)):
        monkeypatch.setenv(OVERRIDE, told)
        assert native_bf16(CPU) == (native, f"{OVERRIDE}={told} says so")
    monkeypatch.setenv(OVERRIDE, "yes")
    with pytest.raises(UserError, match=f"{OVERRIDE} is 'yes': set it to 1 or 0"):
        native_bf16(CPU)


@pytest.mark.parametrize(
    ("stored", "native", "budget", "expected"),
    [
        (BF16, "1", None, BF16),
        (BF16, "0", None, F32),
        (BF16, "0", 200, F32),
        (BF16, "0", 199, BF16),  # float32 would take 200 bytes
        (F32, "1", None, F32),  # nothing is rounded unasked
        (F32, "0", 10, F32),
        (F16, "1", None, F32),  # no CPU is asked for float16
        (F16, "1", 199, F16),
        (torch.float64, "0", None, torch.float64),
    ],
)
def test_auto(monkeypatch, stored, native: str, budget: int | None, expected) -> None:
    monkeypatch.setenv(OVERRIDE, native)
    assert automatic_dtype(stored, CPU, 100, budget) is expected


def test_it_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "0")
    assert describe(F32, CPU) == f"computing in float32 ({OVERRIDE}=0 says so)"
    assert describe(BF16, CPU) == f"weights stay in bfloat16, products are made in float32 ({OVERRIDE}=0 says so)"
    monkeypatch.setenv(OVERRIDE, "1")
    assert describe(BF16, CPU) == f"computing in bfloat16 ({OVERRIDE}=1 says so)"
    assert describe(F32, CPU) == "computing in float32 (the type of the base's files, or the requested one)"
    assert products_are_float32(F16, CPU)
    assert not products_are_float32(BF16, CPU)


class _Odd(nn.Module):
    """A module with parameters of its own, one of which is None, and a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.register_parameter("none", None)

    def forward(self, x: torch.Tensor, *, add: float = 0.0) -> torch.Tensor:
        return self.inner(x) * self.scale + add


def test_narrow_weights_give_float32_results_bit_for_bit() -> None:
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32))  # Conv1D, biases
    for model, given in ((micro_model(), ids), (gpt2.eval(), ids), (_Odd(), torch.rand(3, 4))):
        for dtype in (BF16, F16):
            narrow = multiply_in_float32(copy.deepcopy(model).to(dtype))
            wide = copy.deepcopy(model).to(dtype).float()
            with torch.no_grad():
                ours, theirs = narrow(given), wide(given)
            ours, theirs = (getattr(out, "logits", out) for out in (ours, theirs))
            assert ours.dtype is F32
            assert torch.equal(ours, theirs)
            assert {own.dtype for own in narrow.parameters()} == {dtype}


def test_a_deep_copy_multiplies_its_own_weights() -> None:
    model = multiply_in_float32(nn.Sequential(nn.Linear(2, 2)).to(BF16))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for own in other.parameters():
            own.zero_()
        assert not other(torch.ones(1, 2)).any()
        assert model(torch.ones(1, 2)).any()


def test_weights_swapped_for_one_call_are_widened_too() -> None:
    model = multiply_in_float32(nn.Linear(2, 2, bias=False).to(BF16))
    tuned = {"weight": torch.full((2, 2), 3.0, dtype=BF16)}
    with torch.no_grad():
        out = torch.func.functional_call(model, tuned, (torch.ones(1, 2),))
    assert out.tolist() == [[6.0, 6.0]]
    assert model.weight.dtype is BF16


def test_after_an_error_the_weights_are_the_narrow_ones() -> None:
    model = multiply_in_float32(nn.Linear(2, 2).to(BF16))
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 3))
    assert model.weight.dtype is BF16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    micro_model().to(BF16).save_pretrained(tmp_path)
    micro_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_open_base_on_a_processor_without_bfloat16(folder: Path, without_bf16: None) -> None:
    wide, narrow = open_base(folder, device="cpu"), open_base(folder, device="cpu", dtype="bfloat16")
    assert wide.model.dtype is F32
    assert narrow.model.dtype is BF16
    assert narrow.nbytes * 2 == pytest.approx(wide.nbytes, rel=0.01)  # but for a few buffers
    assert open_base(folder, device="cpu", budget=wide.nbytes * 9 // 10).model.dtype is BF16
    answers = [generate(base.model, base.tokenizer, ["ab", "c"], Sampling(8)) for base in (wide, narrow)]
    assert answers[0] == answers[1]


def test_what_a_folder_holds_in_float32_is_not_rounded_on_the_way(folder: Path, without_bf16: None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "norm" in name)
    tensors[name] = torch.full(tensors[name].shape, 1.0001)  # 1 in bfloat16
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(open_base(folder, device="cpu").model.state_dict()[name], tensors[name])


def test_open_base_on_a_processor_with_bfloat16(folder: Path, with_bf16: None) -> None:
    assert open_base(folder, device="cpu").model.dtype is BF16
    assert "forward" not in vars(open_base(folder, device="cpu").model.lm_head)
    micro_model().save_pretrained(folder)
    assert open_base(folder, device="cpu", dtype="auto").model.dtype is F32
