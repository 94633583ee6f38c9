"""The compiled functions against the slow recipe of packs and against torch; what happens where they cannot be made."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch

from skillweave.errors import UserError
from skillweave.files import native
from skillweave.pack import LowRank, reference_forward
from skillweave.weave import compiled as module
from skillweave.weave import int8
from skillweave.weave.change import GroupRun
from skillweave.weave.coded_factors import LaidOutFactors, Target
from skillweave.weave.compiled_group import CompiledGroup
from skillweave.weave.int8 import Int8Linear, SharedInput
from skillweave.weave.stack import GroupStack, RowPacks
from skillweave.weave.widened import Widened, Widening

CPU = torch.device("cpu")
needs_compiled = pytest.mark.skipif(
    module.compiled() is None, reason="the functions need a C++ compiler and AVX512 VNNI, and one is missing"
)


def pack(
    seed: int,
    inner: int,
    sizes: dict[str, tuple[int, int]],
    *,
    largest: int = 7,
    smooth: bool = False,
    scale: float = 1,
    wide: int = 1,
) -> dict[str, LowRank]:
    """Random factors: module -> (out, rank); ``scale`` is that of the first factor's rows.

    All ranks but each ``wide``-th one have codes of four bits.
    """
    source = torch.Generator().manual_seed(seed)

    def codes(rank: int, other: int) -> torch.Tensor:
        made = torch.randint(-largest, largest + 1, (rank, other), generator=source, dtype=torch.int8)
        return torch.where((torch.arange(rank) % wide == 0)[:, None], made, made.clamp(-7, 7))

    smoothing = (torch.rand(inner, generator=source) + 0.5).half() if smooth else None
    return {
        name: LowRank(
            codes(rank, out).T.contiguous(),
            codes(rank, inner),
            torch.rand(out, generator=source).half(),
            (torch.rand(rank, generator=source) * scale).half(),
            smoothing,
        )
        for name, (out, rank) in sizes.items()
    }


def stack_of(packs: dict[str, dict[str, LowRank]]) -> GroupStack:
    stack = GroupStack()
    for name, modules in packs.items():
        smooth = next(iter(modules.values())).smooth
        targets = [Target(key, "group", (key,)) for key in modules]
        factors = LaidOutFactors(targets, modules.__getitem__, CPU).laid_out()["group"]
        stack.add(name, factors, None if smooth is None else 1 / smooth.float())
    return stack


def widened_of(stack: GroupStack) -> Callable[[str], Widened]:
    """Pack -> its factors as the compiled functions read them, in a buffer that was not empty."""
    unsmooth = {name: {} if own is None else {"group": own} for name, own in stack.unsmooth.items()}
    groups = {name: {"group": factors} for name, factors in stack.factors.items()}
    return lambda name: Widening(groups[name]).widened(
        groups[name], unsmooth[name], lambda size: torch.full((size,), 99, dtype=torch.uint8)
    )["group"]


def changes(stack: GroupStack, rows: list[str | None], x: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
    group = CompiledGroup(stack, RowPacks(rows), widened_of(stack))
    hidden = group.into_rank(x)
    for name, output in outputs.items():
        group.add(name, hidden, output)


@needs_compiled
@pytest.mark.parametrize(
    ("inner", "per_row", "rows"),
    [
        (1, 1, ["a"]),
        (24, 1, ["a", "b", None, "c", "a"]),
        (65, 3, ["c", None, "c", "b"]),
        (130, 7, [None, "b"]),
        (576, 5, ["a", "a", "a"]),
        (64, 1, ["d"] * 21),
    ],
)
def test_every_row_gets_what_the_slow_recipe_says(inner, per_row, rows):
    packs = {
        "a": pack(1, inner, {"q": (33, 5), "k": (16, 1)}, smooth=True),
        "b": pack(2, inner, {"k": (16, 70), "v": (7, 3)}, largest=127),
        "c": pack(3, inner, {"q": (33, 17)}, largest=127, scale=6e4, wide=3),
        "d": pack(4, inner, {"q": (33, 4), "v": (7, 9)}, smooth=True, scale=1e-7),
    }
    x = torch.randn(len(rows), per_row, inner, generator=torch.Generator().manual_seed(0)) * 30
    x[0, 0] = 0
    start = {name: torch.randn(len(rows), per_row, out) for name, out in (("q", 33), ("k", 16), ("v", 7))}
    got = {name: output.clone() for name, output in start.items()}
    changes(stack_of(packs), rows, x, got)
    for name, output in got.items():
        for index, own in enumerate(rows):
            parts = packs[own].get(name) if own else None
            if parts is None:
                assert torch.equal(output[index], start[name][index])
            else:
                want = reference_forward(x[index], parts)
                # A code on a half may round to either side: one step of the second product.
                step = parts.A.float().abs().amax(1) * parts.A_scale.float() * _second_scale(x[index], parts)
                error = (output[index] - start[name][index] - want).abs()
                assert (error <= 2 * step + 1e-4 * (want.abs() + start[name][index].abs())).all()
                assert (error <= 1e-4 * (want.abs().amax() + start[name][index].abs().amax())).float().mean() > 0.9


def _second_scale(x: torch.Tensor, parts: LowRank) -> torch.Tensor:
    """The scale of the second codes of each token, (tokens, 1)."""
    u = x if parts.smooth is None else x / parts.smooth.float()
    return ((u @ parts.B.float().T) * parts.B_scale.float()).abs().amax(dim=-1, keepdim=True) / 127


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_is_the_same_with_torch(monkeypatch, dtype):
    packs = {
        name: pack(seed, 40, {"q": (18, 3 + seed), "k": (9, 2)}, smooth=seed == 1, largest=127 if seed else 7)
        for seed, name in enumerate("abc")
    }
    rows = ["b", "a", None, "c", "a"]
    x = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    results = []
    for use in (True, False):
        if not use:
            monkeypatch.setattr(module, "compiled", lambda: None)
        stack = stack_of(packs)
        run = GroupRun(stack, RowPacks(rows), widened_of(stack))
        outputs = {"q": torch.ones(5, 3, 18, dtype=dtype), "k": torch.ones(5, 3, 9, dtype=dtype)}
        for name, output in outputs.items():
            run.add(name, x, x, output)
        results.append(outputs)
    for name in outputs:
        torch.testing.assert_close(
            results[0][name], results[1][name], rtol=0.01 if dtype.itemsize == 2 else 1e-5, atol=0
        )


@needs_compiled
def test_without_a_scale_of_the_outputs_it_is_one():
    parts = pack(5, 12, {"q": (20, 6)})["q"]
    ones = LowRank(parts.A, parts.B, torch.ones(20).half(), parts.B_scale, None)
    stack = stack_of({"a": {"q": ones}})
    assert stack.factors["a"]["q"].A_scale is None
    x, output = torch.randn(2, 1, 12), torch.zeros(2, 1, 20)
    changes(stack, ["a", "a"], x, {"q": output})
    torch.testing.assert_close(output, reference_forward(x, ones), rtol=1e-4, atol=1e-3)


@needs_compiled
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 30, 300])
def test_the_largest_codes_neither_saturate_nor_wrap(tokens):
    inner = 4099
    full = torch.full((5, inner), 127, dtype=torch.int8)
    parts = LowRank(torch.full((3, 5), -127, dtype=torch.int8), full, torch.ones(3).half(), torch.ones(5).half(), None)
    x, output = torch.full((1, tokens, inner), -2.0), torch.zeros(1, tokens, 3)
    changes(stack_of({"a": {"q": parts}}), ["a"], x, {"q": output})
    assert output.unique().tolist() == [pytest.approx(2.0 * inner * 127 * 127 * 5)]
    layer = Int8Linear(torch.ones(17, inner))
    assert layer(x).unique().tolist() == [pytest.approx(-2.0 * inner)]


@needs_compiled
def test_a_nan_stays_in_its_token():
    stack = stack_of({"a": pack(1, 20, {"q": (18, 5)})})
    x, output = torch.randn(1, 3, 20), torch.zeros(1, 3, 18)
    x[0, 1, 7] = float("nan")
    changes(stack, ["a"], x, {"q": output})
    assert output[0, 1].isnan().all()
    assert output[0, [0, 2]].isfinite().all()


# -- layers that share their input -----------------------------------------------------------------------------------


def shared(dtype: torch.dtype = torch.float32) -> tuple[list[Int8Linear], list[Int8Linear]]:
    """(layers that share their input, the same layers, each alone)."""
    source = torch.Generator().manual_seed(0)
    kept = torch.tensor([3, 17])
    weights = [torch.randn(out, 70, generator=source).to(dtype) for out in (33, 16, 5)]
    alone = [Int8Linear(weight, torch.randn(len(weight)).to(dtype), outliers=kept) for weight in weights]
    together = copy.deepcopy(alone)
    SharedInput(together)
    return together, alone


@pytest.mark.parametrize("use", [pytest.param(True, marks=needs_compiled), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_share_their_input_compute_what_each_computes_alone(monkeypatch, use, dtype):
    together, alone = shared(dtype)
    if not use:
        monkeypatch.setattr(module, "compiled", lambda: None)
    x = torch.randn(4, 6, 70).to(dtype)
    for copied in (together, copy.deepcopy(together)):
        for layer, other in zip(copied, alone, strict=True):
            torch.testing.assert_close(layer(x), other(x))
        torch.testing.assert_close(copied[1](x), alone[1](x))
        x.mul_(-2)  # the same tensor with other numbers
        torch.testing.assert_close(copied[1](x), alone[1](x))
        torch.testing.assert_close(copied[0](x), alone[0](x))


@pytest.mark.parametrize("use", [pytest.param(True, marks=needs_compiled), False])
def test_a_layer_with_tuned_values_leaves_the_others_alone(monkeypatch, use):
    together, alone = shared()
    if not use:
        monkeypatch.setattr(module, "compiled", lambda: None)
    x = torch.randn(3, 70)
    together[0](x)
    own = together[1].weight.data
    together[1].weight.data = torch.zeros_like(own)
    torch.testing.assert_close(together[1](x), together[1].bias + x[:, [3, 17]] @ together[1].outlier_weight)
    torch.testing.assert_close(together[2](x), alone[2](x))
    together[1].weight.data = own
    for layer, other in zip(together, alone, strict=True):
        torch.testing.assert_close(layer(x), other(x))


# -- where the functions cannot be made ------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch, tmp_path):
    """What is said while the functions are looked for in an empty cache."""
    lines: list[str] = []
    monkeypatch.setattr(native, "say_once", lines.append)
    monkeypatch.setattr(module, "may_run", lambda: True)
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path))
    monkeypatch.delenv(native.OVERRIDE, raising=False)
    module.compiled.cache_clear()
    yield lines
    module.compiled.cache_clear()


def test_without_a_compiler_torch_computes_and_it_is_said(said, monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert module.compiled() is None
    assert "no C++ compiler" in said[0]
    x = torch.randn(2, 8)
    assert Int8Linear(torch.eye(8))(x).shape == (2, 8)


@pytest.mark.parametrize(("script", "why"), [("echo 'bad flag' >&2; exit 1", "bad flag"), ("exit 1", "no reason")])
def test_a_compiler_that_fails_is_named(said, monkeypatch, tmp_path, script, why):
    false = tmp_path / "g++"
    false.write_text(f"#!/bin/sh\n{script}\n")
    false.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(false))
    assert module.compiled() is None
    assert why in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["g++"]


def test_a_damaged_library_is_not_used(said, monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho nonsense > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(compiler))
    assert module.compiled() is None
    assert "cannot be loaded" in said[0]


def test_the_functions_can_be_switched_off(said, monkeypatch):
    monkeypatch.setenv(native.OVERRIDE, "0")
    assert module.compiled() is None
    assert not said
    module.compiled.cache_clear()
    monkeypatch.setenv(native.OVERRIDE, "no")
    with pytest.raises(UserError, match="set it to 1 or 0"):
        module.compiled()


def test_tensors_with_gradients_are_left_to_torch():
    assert not module.usable(torch.ones(1, 1, requires_grad=True))


@needs_compiled
@pytest.mark.parametrize("tokens", [16, 18, 33])
@pytest.mark.parametrize("outs", [(130, 150, 321), (64, 1), (70,)])
def test_a_prompt_is_finished_in_stripes_as_with_torch(monkeypatch, tokens, outs):
    torch.manual_seed(0)
    layers = [Int8Linear(torch.randn(out, 40), torch.randn(out), outliers=torch.tensor([3])) for out in outs]
    if len(layers) > 1:
        SharedInput(layers)
    x = torch.randn(tokens, 40)
    found = [layer(x) for layer in layers]
    monkeypatch.setattr(int8, "usable", lambda _: False)
    for layer, own in zip(layers, found, strict=True):
        torch.testing.assert_close(own, layer(x.clone()), rtol=1e-5, atol=1e-4)


def test_what_another_process_compiled_meanwhile_is_not_compiled_again(monkeypatch, tmp_path):
    made = tmp_path / "made.so"

    @contextlib.contextmanager
    def claimed(place, *, waiting):
        place.touch()  # the other process was faster
        yield

    monkeypatch.setattr(native, "claim", claimed)
    assert native._compile(["no-such-compiler"], "kernels.cpp", made) is None
    made.unlink()
    monkeypatch.undo()
    assert "could not be compiled" in native._compile(["no-such-compiler"], "kernels.cpp", made)
