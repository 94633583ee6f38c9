"""The int8 linear layer against float64, and a model whose linear layers are in int8."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from helpers.micro import micro_model, micro_tokenizer, save_micro
from helpers.weave_packs import random_pack
from skillweave.base import Base, fingerprint, open_base
from skillweave.base.precision import multiply_in_float32
from skillweave.errors import UserError
from skillweave.pack import FactorsEntry
from skillweave.weave import PackedModel, Weave, compiled, is_int8, linear, put_into_int8
from skillweave.weave.int8 import LONGEST, Int8Embedding, Int8Linear, SharedInput, row_codes, smoothing
from skillweave.weave.int8_loss import loss, next_log_probs

UP = "model.layers.0.mlp.up_proj"


def slow(layer: Int8Linear, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The layer's formula in float64, one token at a time, from the float weight (out, in)."""
    rest = [channel for channel in range(weight.shape[1]) if channel not in layer.outliers.tolist()]
    smooth = torch.ones(weight.shape[1]).double() if layer.unsmooth is None else 1 / layer.unsmooth.double()
    scaled = weight.double()[:, rest] * smooth[rest]
    w_scale = scaled.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    rows = []
    for token in x.double().reshape(-1, x.shape[-1]):
        u = token[rest] / smooth[rest]
        scale = u.abs().max().clamp_min(1e-30) / 127
        y = (w_scale * ((scaled / w_scale).round() @ (u / scale).round())[:, None])[:, 0] * scale
        y = y + weight.double()[:, layer.outliers] @ token[layer.outliers]
        rows.append(y if bias is None else y + bias.double())
    return torch.stack(rows).view(*x.shape[:-1], -1) if rows else x.new_zeros(0, len(weight)).double()


@pytest.mark.parametrize("law", ["linear", "transposed"])
@pytest.mark.parametrize(
    ("shape", "inner", "out", "kept", "smooth", "bias"),
    [
        ((1,), 1, 1, [], False, False),
        ((5,), 7, 3, [6, 2], True, True),
        ((2, 3), 33, 17, [0], False, True),
        ((0,), 8, 4, [1], False, False),
        ((300,), 65, 31, [3, 64], True, False),
    ],
)
def test_the_layer_computes_its_formula(law, shape, inner, out, kept, smooth, bias):
    source = torch.Generator().manual_seed(inner)
    weight = torch.randn(out, inner, generator=source) * torch.logspace(-6, 6, out)[:, None]
    x = torch.randn(*shape, inner, generator=source)
    x[..., kept] *= 100
    offset = torch.randn(out, generator=source) if bias else None
    factors = torch.rand(inner, generator=source) + 0.5 if smooth else None
    layer = Int8Linear(
        weight if law == "linear" else weight.T.contiguous(),
        offset,
        law=law,
        outliers=torch.tensor(kept, dtype=torch.int64),
        smooth=factors,
    )
    assert layer.weight.dtype is torch.int8
    want, got = slow(layer, x, weight, offset), layer(x)
    assert got.shape == (*shape, out)
    # A value halfway between two codes may round to either in float32, so a code more or less of one token and row.
    step = (weight.abs().amax(dim=1) * x.abs().amax(dim=-1, keepdim=True) / 127) if x.numel() else torch.zeros(())
    assert ((got - want).abs() <= 0.02 * step + 1e-5 * want.abs()).float().mean() > 0.98 or not x.numel()
    assert ((got - want).abs() <= 4 * step + 1e-5 * want.abs()).all()


def test_the_decoded_weight_is_within_half_a_code_and_exact_in_the_outliers():
    weight = torch.randn(9, 20)
    layer = Int8Linear(weight, outliers=torch.tensor([4, 7]), smooth=torch.rand(20) + 0.5)
    decoded = layer.decoded()
    assert torch.equal(decoded[:, [4, 7]], weight[:, [4, 7]])
    scaled = weight / layer.unsmooth
    scaled[:, [4, 7]] = 0
    half = scaled.abs().amax(dim=1, keepdim=True) / 254 * layer.unsmooth
    assert ((decoded - weight).abs() <= half * 1.001).all()
    torch.testing.assert_close(layer.coded(decoded)["weight"], layer.weight.data)


def test_zero_rows_huge_and_tiny_scales_and_nan():
    weight = torch.tensor([[0.0, 0.0], [1e20, -3e20], [1e-20, 1e-20], [float("nan"), 1.0]])
    codes, top = row_codes(weight)
    assert codes[:3].tolist() == [[0, 0], [42, -127], [127, 127]]
    assert top[3].isnan()
    layer = Int8Linear(weight)
    y = layer(torch.tensor([[0.0, 0.0], [1e-10, 1e-10], [1e10, 0.0], [float("nan"), 1.0]]))
    assert y[:3, 0].tolist() == [0.0, 0.0, 0.0]
    assert y[0, :3].tolist() == [0.0, 0.0, 0.0]
    assert y[1, 1].item() == pytest.approx(-2e10, rel=0.02)
    assert y[2, 2].item() == pytest.approx(1e-10, rel=0.02)
    assert y[3, :].isnan().all()
    assert y[:, 3].isnan().all()
    assert Int8Linear(weight, outliers=torch.tensor([0]))(torch.tensor([[float("nan"), 1.0]])).isnan().all()


def test_the_largest_codes_neither_saturate_nor_wrap():
    inner = 4096
    layer = Int8Linear(torch.ones(3, inner))
    assert layer(torch.full((2, inner), -2.0)).tolist() == [[pytest.approx(-2.0 * inner)] * 3] * 2
    assert LONGEST * 127 * 127 < 2**31 <= (LONGEST + 1) * 127 * 127
    with pytest.raises(ValueError, match="int32"):
        Int8Linear(torch.zeros(1, LONGEST + 1))


def test_without_integer_products_the_numbers_are_the_same(monkeypatch):
    layer, x = Int8Linear(torch.randn(5, 3000)), torch.randn(4, 3000)
    want = layer(x)
    monkeypatch.setattr(linear, "_int_mm_is_exact", lambda device: False)
    assert torch.equal(layer(x), want)


def test_the_output_has_the_dtype_of_the_input_and_a_token_does_not_depend_on_the_others():
    layer, x = Int8Linear(torch.randn(6, 40), outliers=torch.tensor([3])), torch.randn(200, 40)
    assert layer(x.bfloat16()).dtype is torch.bfloat16
    assert torch.allclose(layer(x)[150], layer(x[150:151])[0], atol=1e-6)


@pytest.mark.parametrize("law", ["linear", "transposed"])
@pytest.mark.parametrize(("kept", "smooth", "bias"), [([], False, True), ([2, 6], False, False), ([6], True, True)])
def test_the_gradient_is_that_of_rounding_as_the_identity(law, kept, smooth, bias):
    """Against autograd through x + (rounded x - x), and the output to the bit that of the layer without gradients."""
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 9, generator=source)
    layer = Int8Linear(
        weight if law == "linear" else weight.T.contiguous(),
        torch.randn(5, generator=source) if bias else None,
        law=law,
        outliers=torch.tensor(kept, dtype=torch.int64),
        smooth=torch.rand(9, generator=source) + 0.5 if smooth else None,
    )
    rest = [channel for channel in range(9) if channel not in kept]
    x = torch.randn(2, 3, 9, generator=source)
    x[..., kept] *= 100
    before = torch.randn(9, 9, generator=source, requires_grad=True)
    given = x @ before
    got = layer(given)
    assert torch.equal(got, layer(given.detach()))

    unsmooth = torch.ones(9) if layer.unsmooth is None else layer.unsmooth
    u = (given * unsmooth)[..., rest]
    scale = u.detach().abs().amax(dim=-1, keepdim=True) / 127
    rounded_u = u + (scale * (u / scale).round() - u).detach()
    dense = layer.decoded() if law == "linear" else layer.decoded().T
    want = (rounded_u / unsmooth[rest]) @ dense[:, rest].T + given[..., kept] @ dense[:, kept].T
    torch.testing.assert_close(got, want if layer.bias is None else want + layer.bias, atol=1e-3, rtol=1e-4)
    weights = torch.randn(2, 3, 5, generator=source)
    (mine,) = torch.autograd.grad((got * weights).sum(), before, retain_graph=True)
    (slow_one,) = torch.autograd.grad((want * weights).sum(), before)
    torch.testing.assert_close(mine, slow_one, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("use", ["torch", "compiled functions where they can be made"])
def test_layers_that_share_an_input_have_gradients_of_their_own(use, monkeypatch):
    if use == "torch":
        monkeypatch.setattr(compiled, "compiled", lambda: None)
    one, two = (Int8Linear(torch.randn(out, 8), outliers=torch.tensor([3])) for out in (4, 6))
    SharedInput([one, two])
    x = torch.randn(2, 5, 8, requires_grad=True)
    with torch.no_grad():
        plain = one(x), two(x)
    first, second = one(x), two(x)
    assert torch.equal(first, plain[0])
    assert torch.equal(second, plain[1])
    (first.sum() + 2 * second.sum()).backward()
    want = one.decoded().sum(dim=0) + 2 * two.decoded().sum(dim=0)
    torch.testing.assert_close(x.grad, want.expand(2, 5, 8))


def test_smoothing_follows_its_formula_where_both_sides_are_positive():
    largest, weight = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.0, 0.0]])
    factors = smoothing(largest, weight, 0.5)
    ratio = (4.0**0.5 / 1.0**0.5) / (1.0**0.5 / 2.0**0.5)
    assert float(factors[0] / factors[1]) == pytest.approx(ratio)
    assert factors.isfinite().all()
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-6)


# -- a model ---


def base_of(model) -> Base:
    return Base(model, micro_tokenizer(), fingerprint(model), "micro", path=None)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def plain(request):
    return micro_model(seed=3, tie=request.param)


@pytest.fixture(scope="module")
def rounded(plain):
    return put_into_int8(base_of(copy.deepcopy(plain)))


def test_every_linear_layer_and_a_tied_embedding_are_replaced_and_nothing_else_changes(plain, rounded):
    assert is_int8(rounded)
    assert rounded.fingerprint == fingerprint(plain)
    tied = plain.config.tie_word_embeddings
    for name, module in plain.named_modules():
        kept = rounded.model.get_submodule(name)
        if isinstance(module, nn.Linear) or (tied and isinstance(module, nn.Embedding)):
            assert isinstance(kept, Int8Linear if isinstance(module, nn.Linear) else Int8Embedding)
            assert kept.weight.nbytes * 2 == module.weight.bfloat16().nbytes
            assert (kept.decoded() - module.weight).abs().max() < 0.01 * module.weight.abs().max()
        else:
            for own, tensor in module.named_parameters(recurse=False):
                assert torch.equal(getattr(kept, own), tensor)
    with pytest.raises(UserError, match="already"):
        put_into_int8(rounded)


def test_a_tied_base_keeps_its_dtype_and_the_products_in_float32():
    narrow = micro_model(seed=3, tie=True).bfloat16()
    rounded = put_into_int8(base_of(copy.deepcopy(narrow))).model
    ids = torch.tensor([[5, 9]])
    assert rounded.dtype == next(rounded.parameters()).dtype == torch.bfloat16
    assert rounded.get_input_embeddings()(ids).dtype == torch.bfloat16
    widened = put_into_int8(base_of(multiply_in_float32(narrow))).model
    assert widened.get_input_embeddings()(ids).dtype == torch.float32
    with pytest.raises(IndexError):
        rounded.get_input_embeddings()(torch.tensor([-1]))


@pytest.mark.parametrize("smooth", [None, 0.5])
@pytest.mark.parametrize("shape", [(2, 5), (1,), (0,), (2, 0)])
def test_a_tied_embedding_looks_up_the_rows_of_the_head(shape, smooth):
    model = micro_model(seed=3, tie=True)
    rounded = put_into_int8(base_of(copy.deepcopy(model)), smooth=smooth).model
    embedding, head = rounded.get_input_embeddings(), rounded.get_output_embeddings()
    assert isinstance(embedding, Int8Embedding)
    assert all(getattr(embedding, name) is getattr(head, name) for name in ("weight", "weight_scale", "outlier_weight"))
    ids = torch.randint(len(head.weight), shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(embedding(ids), nn.functional.embedding(ids, head.decoded()))
    assert torch.equal(embedding(ids)[..., head.outliers], model.get_input_embeddings()(ids)[..., head.outliers])


def test_a_head_that_is_tied_with_an_embedding_of_another_kind_stays_in_floats(capsys):
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    model = micro_model(seed=3, tie=True)
    model.model.embed_tokens = Scaled(*model.lm_head.weight.shape)
    model.lm_head.weight = model.model.embed_tokens.weight
    base = put_into_int8(base_of(model.eval()))
    assert type(base.model.lm_head) is nn.Linear
    assert type(base.model.model.embed_tokens) is Scaled
    assert "'lm_head', which shares its weight with another module" in capsys.readouterr().err


def test_answers_are_near_those_of_the_floats(plain, rounded):
    texts = [([5, 9, 30, 17, 44, 60, 61, 8], 2), ([70, 71, 72, 9], 1)]
    lost = loss(next_log_probs(plain, texts), next_log_probs(rounded.model, texts))
    assert lost.tokens == 9
    assert 0 < lost.kl < 0.015
    assert loss(next_log_probs(plain, texts), next_log_probs(plain, texts)).kl == pytest.approx(0, abs=1e-6)


def test_a_pack_adds_the_same_to_a_layer_in_int8(plain, rounded):
    pack = random_pack(plain, fingerprint(plain), seed=2)
    source = torch.Generator().manual_seed(0)
    key = f"{UP}.weight"
    for part in [name for name in pack.tensors if name.startswith(key)]:
        del pack.tensors[part]
    pack.card.entries[key] = FactorsEntry(shape=tuple(plain.get_submodule(UP).weight.shape), rank=2)
    out, inner = plain.get_submodule(UP).weight.shape
    pack.tensors[f"{key}.A"] = torch.randn(out, 2, generator=source).bfloat16()
    pack.tensors[f"{key}.B"] = torch.randn(2, inner, generator=source).bfloat16()
    changes = []
    for model in (plain, rounded.model):
        packed = PackedModel(model)
        packed.add(packed.prepare("skill", pack))
        own = {}
        for name in ("model.layers.0.self_attn.q_proj", UP, "model.layers.1.mlp.down_proj"):
            layer = model.get_submodule(name)
            x = torch.randn(3, 4, layer.in_features, generator=source.manual_seed(5))
            bare = layer(x)
            with packed.rows(["skill", None, "skill"]):
                own[name] = layer(x) - bare
        changes.append(own)
    for name, change in changes[0].items():
        assert change[0].any()
        assert not change[1].any()
        torch.testing.assert_close(changes[1][name], change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [["skill", None], ["skill", "skill"]])
@pytest.mark.parametrize("kind", ["difference", "whole"])
def test_a_weight_kept_whole_in_a_pack_is_rounded_as_the_base_was(plain, rounded, rows, kind):
    pack = random_pack(plain, fingerprint(plain), seed=4, only=("q_proj",), **{kind: (f"{UP}.weight",)})
    packed = PackedModel(rounded.model)
    packed.add(packed.prepare("skill", pack))
    layer, x = rounded.model.get_submodule(UP), torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    bare = layer(x)
    tuned = pack.tensors[f"{UP}.weight"] if kind == "whole" else layer.decoded() + pack.tensors[f"{UP}.weight"]
    with packed.rows(rows):
        got = layer(x)
    want = x @ tuned.T
    assert (got[0] - want[0]).abs().max() < 0.03 * want.abs().max()
    assert torch.equal(got[1], bare[1]) == (rows[1] is None)
    assert torch.equal(layer(x), bare)


@pytest.mark.parametrize("kind", ["difference", "whole"])
def test_a_pack_changes_a_tied_embedding_and_head_for_its_own_rows(kind):
    model, key = micro_model(seed=3, tie=True), "model.embed_tokens.weight"
    base = put_into_int8(base_of(copy.deepcopy(model)))
    pack = random_pack(model, fingerprint(model), seed=4, only=("q_proj",), **{kind: (key,)})
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tuned = pack.tensors[key] if kind == "whole" else head.decoded() + pack.tensors[key]
    packed, ids = PackedModel(base.model), torch.tensor([[5, 9, 30], [5, 9, 30]])
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    bare = embedding(ids), head(x)
    packed.add(packed.prepare("skill", pack))
    with packed.rows(["skill", None]):
        got = embedding(ids), head(x)
    for changed, plain_output, want in zip(got, bare, (tuned[ids], x @ tuned.T), strict=True):
        assert (changed[0] - want[0]).abs().max() < 0.03 * want.abs().max()
        assert torch.equal(changed[1], plain_output[1])


def test_conv1d_layers_of_gpt2_are_replaced_and_take_packs():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=1, n_head=2)).eval()
    want = next_log_probs(model, [([5, 9, 30, 17], 1)])
    base = put_into_int8(base_of(model))
    layer = model.transformer.h[0].mlp.c_fc
    assert isinstance(layer, Int8Linear)
    assert layer.law == "transposed"
    assert layer.weight.shape == (32, 128)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    assert loss(want, next_log_probs(base.model, [([5, 9, 30, 17], 1)])).kl < 1e-3


def test_a_model_without_linear_layers_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(128, 128)
            self.config = micro_model().config

        def get_input_embeddings(self):
            return self.table

        def get_output_embeddings(self):
            return None

        def forward(self, input_ids, use_cache=False):
            return self.table(input_ids)

    with pytest.raises(UserError, match="no linear layer"):
        put_into_int8(Base(Bare().eval(), micro_tokenizer(), "sha256:0", "bare", path=None))


# -- a weave ---


def test_a_weave_is_opened_in_int8_by_argument_or_by_its_card(tmp_path):
    base = open_base(save_micro(tmp_path / "base"))
    pack = random_pack(base.model, base.fingerprint, name="skill")
    folder = Weave.write(tmp_path / "weave", base, {"skill": pack}, backbone_codes="int8")
    woven = Weave.from_pretrained(folder)
    assert is_int8(woven.base)
    assert woven.base.fingerprint == base.fingerprint
    assert woven.base_bytes < base.nbytes
    assert woven.base.checkpoint.tensor(f"{UP}.weight").is_floating_point()
    assert woven.generate(["hello"], "skill")[0].text is not None
    assert not is_int8(Weave.from_pretrained(folder, backbone="dtype").base)
    with pytest.raises(UserError, match="unknown backbone 'int4'"):
        Weave.from_pretrained(folder, backbone="int4")
    with pytest.raises(UserError, match="used as it is"):
        Weave.from_pretrained(folder, base=base, backbone="int8")
    assert not is_int8(Weave.from_pretrained(folder, base=base).base)


def test_what_a_tuned_base_held_is_not_read_back_from_int8(plain):
    base = put_into_int8(base_of(copy.deepcopy(plain)))
    base.in_memory = True
    with pytest.raises(UserError, match="rounded to int8"):
        _ = base.checkpoint
