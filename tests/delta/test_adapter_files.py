"""Adapter files from strangers: odd names, resized and repeated embeddings, configs that ask for too much."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from helpers.micro import save_micro
from helpers.tuned import save_adapter
from skillweave.base import open_base
from skillweave.delta import Delta, adapter_config
from skillweave.delta.adapter_config import other_base
from skillweave.errors import UserError

IDS = torch.arange(5, 25).view(2, 10)
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


ENDLESS = "(.*?)" * 10 + "[a-z]{9}[0-9]"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def adapters(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("adapters")
    return {
        "plain": save_adapter(micro_base, room / "plain", **LORA),
        "dora": save_adapter(micro_base, room / "dora", **LORA, use_dora=True),
    }


def changed_copy(
    adapter: Path, folder: Path, config: dict[str, Any] | None = None, tensors: Callable[[dict], dict] | None = None
) -> Path:
    """A copy of an adapter with some keys of its config set, or its tensors changed."""
    shutil.copytree(adapter, folder)
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
    if tensors is not None:
        save_file(tensors(load_file(weights)), weights)
    return folder


def same(one: Delta, other: Delta) -> bool:
    return one.names() == other.names() and all(
        torch.equal(one.tensor(name), other.tensor(name)) for name in one.names()
    )


PREFIXES = {
    "doubled": "base_model.model.model.model.",
    "missing": "base_model.model.",
    "bare": "",
    "around": "base_model.model.model.language_model.",
}


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES.keys())
def test_names_under_another_prefix(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path, prefix: str, kind: str
) -> None:
    odd = changed_copy(
        adapters[kind],
        tmp_path / "odd",
        tensors=lambda stored: {name.replace("base_model.model.model.", prefix): stored[name] for name in stored},
    )
    expected, delta = Delta.from_lora(adapters[kind], micro_base), Delta.from_lora(odd, micro_base)
    assert same(delta, expected)
    delta.save_pretrained(tmp_path / "delta")
    assert same(Delta.from_pretrained(tmp_path / "delta"), expected)
    if kind == "plain":  # a saved LoRA delta is an adapter that PEFT loads, whatever the names were
        stored, usual = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "delta", adapters[kind]))
        assert stored.keys() == usual.keys()
        assert all(torch.equal(stored[name], usual[name]) for name in usual)


def test_an_adapter_and_a_fine_tune_of_the_language_model_in_a_multimodal_base(tmp_path: Path) -> None:
    """The adapter's names may be those of the text model alone, or those that older transformers wrote."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**sizes, "vocab_size": 40, "num_key_value_heads": 1, "head_dim": 8},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "multi")
    alone = Gemma3ForCausalLM(config.text_config)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    torch.nn.init.ones_(alone.model.layers[0].mlp.up_proj.weight)
    alone.save_pretrained(tmp_path / "alone")
    for sides in (("multi", "alone"), ("alone", "multi")):
        with pytest.raises(UserError, match=r"/multi\) reads more than text, .*/alone\) is a language model alone"):
            Delta.between(*(tmp_path / side for side in sides))
    joined = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "multi")
    joined.model.language_model.load_state_dict(alone.model.state_dict())  # as the error says
    joined.save_pretrained(tmp_path / "joined")
    changed = "model.language_model.layers.0.mlp.up_proj.weight"
    assert Delta.between(tmp_path / "multi", tmp_path / "joined").names() == [changed]
    targets = LoraConfig(r=2, target_modules=r".*language_model.*\.up_proj", init_lora_weights=False)
    get_peft_model(model, targets).save_pretrained(tmp_path / "adapter")
    expected = Delta.from_lora(tmp_path / "adapter", tmp_path / "multi")
    assert expected.names() == [changed]
    for kind, prefix in {"text": "model.", "older": "language_model.model.", "bare": "language_model."}.items():
        odd = changed_copy(
            tmp_path / "adapter",
            tmp_path / kind,
            tensors=lambda stored, prefix=prefix: {
                name.replace("model.language_model.", prefix): stored[name] for name in stored
            },
        )
        assert same(Delta.from_lora(odd, tmp_path / "multi"), expected)


def test_two_names_of_one_tensor_are_refused(micro_base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    twice = changed_copy(
        adapters["plain"],
        tmp_path / "twice",
        tensors=lambda stored: (
            stored | {name.replace(".model.model.", ".model."): stored[name].clone() for name in stored}
        ),
    )
    with pytest.raises(UserError, match="are two names of one tensor"):
        Delta.from_lora(twice, micro_base)


# -- embeddings saved beside the factors ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("names", [[EMBEDDING, "lm_head.weight"], [EMBEDDING], ["lm_head.weight"]])
@pytest.mark.parametrize("rows", [0, 4], ids=["equal", "resized"])
def test_embeddings_that_peft_saved_along(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path, kind: str, names: list[str], rows: int
) -> None:
    """Equal to the base's they are no change; with added rows they are one whole tensor, by whichever name."""
    table = load_file(micro_base / "model.safetensors")[EMBEDDING]
    table = torch.cat([table, torch.full((rows, table.shape[1]), 0.5)])
    added = {f"base_model.model.{name}": table.clone() for name in names}
    adapter = changed_copy(adapters[kind], tmp_path / "saved", tensors=lambda stored: stored | added)
    delta, plain = Delta.from_lora(adapter, micro_base), Delta.from_lora(adapters[kind], micro_base)
    assert delta.names() == sorted([*plain.names(), *([EMBEDDING] if rows else [])])
    if rows:
        assert delta.whole(EMBEDDING)
        assert torch.equal(delta.tensor(EMBEDDING), table)
    delta.save_pretrained(tmp_path / "delta")
    assert same(Delta.from_pretrained(tmp_path / "delta"), delta)
    if kind == "plain":
        model = AutoModelForCausalLM.from_pretrained(micro_base)
        model.resize_token_embeddings(len(table), mean_resizing=False)
        PeftModel.from_pretrained(model, tmp_path / "delta")(IDS)
        assert torch.equal(model.lm_head.weight, table)


def test_embeddings_saved_unlike_on_a_tied_base_are_refused(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    table = load_file(micro_base / "model.safetensors")[EMBEDDING]
    added = {f"base_model.model.{EMBEDDING}": table + 1, "base_model.model.lm_head.weight": table + 2}
    adapter = changed_copy(adapters["plain"], tmp_path / "unlike", tensors=lambda stored: stored | added)
    with pytest.raises(UserError, match=r"with different values, and .* ties the two: untie the base"):
        Delta.from_lora(adapter, micro_base)


def _answers_as(trained: Any, tmp_path: Path, base: Path) -> None:
    """Check that the delta of the adapter, saved and read again, answers as the trained model of PEFT does."""
    Delta.from_lora(tmp_path / "adapter", base).save_pretrained(tmp_path / "delta")
    tuned = Delta.from_pretrained(tmp_path / "delta").apply(open_base(base, device="cpu")).model
    with torch.no_grad():
        torch.testing.assert_close(tuned(IDS).logits, trained(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_trained_tokens_of_a_resized_vocabulary(tmp_path: Path, tie: bool) -> None:
    """PEFT saves the resized embedding inside the layer of the trained tokens, and on a tied base once for each end."""
    base = save_micro(tmp_path / "base", tie=tie)
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 2, mean_resizing=False)
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices=[3, rows],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    trained = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "trainable_tokens" in name:
                parameter.add_(0.1)
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    _answers_as(trained, tmp_path, base)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"ensure_weight_tying": True}], ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_both_embeddings_trained_after_a_resize(tmp_path: Path, tie: bool, options: dict[str, Any]) -> None:
    """PEFT then saves each of the two three times: trained, as it was before, and trained under its plain name."""
    base = save_micro(tmp_path / "base", tie=tie)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    saved = ["embed_tokens"] if options.get("ensure_weight_tying") and tie else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=saved, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    trained = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert any("original_module" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    _answers_as(trained, tmp_path, base)


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_a_resized_vocabulary_saved_for_one_of_two_is_refused(tmp_path: Path, end: str) -> None:
    base = save_micro(tmp_path / "base", tie=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["q_proj", end], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(UserError, match="PEFT saved only one of the two"):
        Delta.from_lora(tmp_path / "adapter", base)


# -- what is refused --------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a class of its own code": (
        {"auto_mapping": {"parent_library": "evil.modeling"}},
        "names the code 'evil.modeling'",
    ),
    "an unknown kind": (
        {"peft_type": "NEXT_YEAR"},
        r"which the installed PEFT \S+ does not know: install the one that wrote it",
    ),
    "no kind": ({"peft_type": None}, "'peft_type' is missing"),
    "an unknown option": ({"use_magic": True}, "does not know 'use_magic'"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "acts only after its invocation tokens"),
    "replicated": ({"layer_replication": [[0, 1], [0, 2]]}, "makes another architecture"),
    "mixed anew": ({"arrow_config": {"top_k": 1}}, "mixes its parts differently for every input"),
    "mixed by a router": ({"peft_type": "XLORA"}, "XLORA cannot become a delta: it mixes its parts"),
    "drawn at random": ({"init_lora_weights": "pissa_niter_4"}, "in a way that cannot be done again"),
    "from data": ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed the base"),
    "an endless size": ({"r": 10**9}, "r is 1000000000; expected a whole number"),
    "a size in a pattern": ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj is 1000000000"),
    "a list of patterns": ({"alpha_pattern": ["q_proj"]}, "'alpha_pattern' is a list"),
    "a list in a list": ({"target_modules": [["q_proj"]]}, r"'target_modules' holds \['q_proj'\] where the name of a"),
    "a number in a list": ({"modules_to_save": [1]}, "'modules_to_save' holds 1 where the name of a module"),
    "an endless pattern": (
        {"alpha_pattern": {ENDLESS: 3}},
        "alpha_pattern: the regular expression .* takes longer",
    ),
    "an alpha that is none": ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a finite number"),
    "an alpha of null": ({"lora_alpha": None}, "lora_alpha is None; expected a finite number"),
    "a rank of null": ({"r": None}, "r is None; expected a whole number"),
    "an alpha in words": ({"lora_alpha": "much"}, "lora_alpha is 'much'; expected a finite number"),
    "no pattern": ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_believed(micro_base: Path, adapters: dict[str, Path], tmp_path: Path, name: str) -> None:
    values, message = CONFIGS[name]
    with pytest.raises(UserError, match=message):
        Delta.from_lora(changed_copy(adapters["plain"], tmp_path / "odd", values), micro_base)


NEUTRAL: dict[str, dict[str, Any]] = {
    "a class of transformers": {"auto_mapping": {"parent_library": "transformers.models.llama.modeling_llama"}},
    "unknown and not set": {"use_magic": None, "use_more_magic": False},
    "of years ago": {"merge_weights": True, "enable_lora": None},
    "a library to import": {"megatron_config": {"a": 1}, "megatron_core": "this_module_does_not_exist"},
    "caches of the start": {"corda_config": {"cache_file": "/etc/passwd"}, "eva_config": {"rho": 3.0}},
    "a base on the network": {"base_model_name_or_path": "owner/name", "revision": "evil"},
    "modules as an endless pattern": {"target_modules": ENDLESS},
}


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_what_a_config_names_is_not_touched(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    odd = changed_copy(adapters[kind], tmp_path / "odd", NEUTRAL[name])
    assert same(Delta.from_lora(odd, micro_base), Delta.from_lora(adapters[kind], micro_base))


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_no_delta(micro_base: Path, tmp_path: Path, config: type) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(micro_base), config(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    model.save_pretrained(tmp_path / "prompts")
    with pytest.raises(UserError, match="adds virtual tokens to the prompt and does not change"):
        Delta.from_lora(tmp_path / "prompts", micro_base)


def test_tensors_that_do_not_fit_are_named(micro_base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    def less(stored: dict) -> dict:
        return {name: tensor for name, tensor in stored.items() if "layers.0.self_attn.q_proj.lora_A" not in name}

    def more(stored: dict) -> dict:
        return stored | {"base_model.model.score.weight": torch.zeros(2, 2)}

    def nan(stored: dict) -> dict:
        return {name: tensor * float("nan") for name, tensor in stored.items()}

    for at, (change, message) in enumerate(
        [
            (less, r"does not have '.*layers\.0\.self_attn\.q_proj\.lora_A.*: the adapter is incomplete"),
            (more, "have no place in the base, .*score"),
            (nan, "NaN or infinite"),
        ]
    ):
        odd = changed_copy(adapters["dora"], tmp_path / str(at), tensors=change)
        with pytest.raises(UserError, match=message):
            Delta.from_lora(odd, micro_base)
    with pytest.raises(UserError, match=r"PEFT cannot merge this adapter into its base \(.*size mismatch"):
        Delta.from_lora(adapters["dora"], save_micro(tmp_path / "narrow", hidden=32))


def test_ia3_with_an_endless_pattern(micro_base: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    adapter = save_adapter(micro_base, tmp_path / "adapter", "IA3", **options)
    started = time.monotonic()
    with pytest.raises(UserError, match="takes longer"):
        Delta.from_lora(changed_copy(adapter, tmp_path / "odd", {"feedforward_modules": ENDLESS}), micro_base)
    assert time.monotonic() - started < 60  # without a limit: for ever


# -- another base -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "ref", "agrees"),
    [
        (None, "owner/name", True),
        ("", "owner/name", True),
        ("owner/name", "owner/name", True),
        ("Owner/Name", "./models/name/", True),
        ("/home/someone/models/name", "owner/name", True),
        ("owner/name", "./files/Name-Q4_K_M.gguf", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "bundled:smollm2", True),
        ("HuggingFaceTB/SmolLM2-135M", "bundled:smollm2", False),
        ("owner/other", "owner/name", False),
        ("owner/name-instruct", "owner/name", False),
    ],
)
def test_names_of_bases_are_compared(tmp_path: Path, named: str | None, ref: str, agrees: bool) -> None:
    assert (other_base({"base_model_name_or_path": named}, ref, tmp_path) is None) == agrees


def test_a_folder_of_the_hubs_cache_is_the_hubs_name() -> None:
    place = Path("/cache/models--owner--name/snapshots/0123")
    assert other_base({"base_model_name_or_path": "owner/name"}, str(place), place) is None
    assert "names the base 'owner/other'" in str(
        other_base({"base_model_name_or_path": "owner/other"}, str(place), place)
    )


def test_a_warning_is_said_and_kept(micro_base: Path, adapters: dict[str, Path], tmp_path: Path, capsys) -> None:
    odd = changed_copy(adapters["plain"], tmp_path / "odd", {"base_model_name_or_path": "owner/other"})
    delta = Delta.from_lora(odd, micro_base)
    assert "names the base 'owner/other'" in " ".join(capsys.readouterr().err.split())
    delta.save_pretrained(tmp_path / "delta")
    assert "owner/other" in Delta.from_pretrained(tmp_path / "delta").provenance["warning"]
    assert "warning" not in Delta.from_lora(adapters["plain"], micro_base).provenance


def _one_layer(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({}, None, None),
        ({"target_modules": r".*\.(q_proj|down_proj)"}, _one_layer, None),  # a pattern is not compared
        ({"layers_to_transform": [0]}, _one_layer, None),
        (
            {},
            _one_layer,
            "it has no factors for 2 of the 4 layers that target_modules names ('model.layers.1.mlp.down_",
        ),
        (
            {"target_modules": ["q_proj"]},
            None,
            "it changes 2 layers that target_modules does not name ('model.layers.0.",
        ),
        ({"modules_to_save": ["down_proj"]}, None, "it changes 2 layers that target_modules does not name"),
    ],
)
def test_a_file_that_does_not_fit_its_config_is_said(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path, capsys, config: dict, tensors: Any, said: str | None
) -> None:
    Delta.from_lora(changed_copy(adapters["plain"], tmp_path / "odd", config, tensors), micro_base)
    told = " ".join(capsys.readouterr().err.split())
    assert (
        ("does not fit" not in told) if said is None else (f"the file does not fit adapter_config.json: {said}" in told)
    )


# -- a later PEFT ------------------------------------------------------------------------------------------------------


def test_every_kind_and_every_option_of_the_installed_peft_is_judged() -> None:
    """After an upgrade of PEFT this names the kinds and options that adapter_config.py must list."""
    kinds = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert kinds == adapter_config._MERGEABLE_KINDS | set(adapter_config._OTHER_KINDS)
    options = {field.name for field in dataclasses.fields(LoraConfig)}
    judged = (adapter_config._PLAIN_OPTIONS, adapter_config._MERGED_OPTIONS, adapter_config._REFUSED_OPTIONS)
    assert options == set().union(*judged)
    assert len(options) == sum(map(len, judged))


@dataclasses.dataclass
class LaterConfig(LoraConfig):
    """LoRA's config as a later PEFT may have it."""

    acts_on_odd_tokens: bool = False
    window: int = 7


def test_an_option_that_only_a_later_peft_knows_is_refused_if_it_is_set(
    micro_base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.LORA, LaterConfig)
    options: dict[str, Any] = {"acts_on_odd_tokens": True, "window": 8}
    for key, value in options.items():
        later = changed_copy(adapters["plain"], tmp_path / key, {key: value})
        with pytest.raises(UserError, match=f"'{key}' is set. The option is newer than"):
            Delta.from_lora(later, micro_base)
    unset = changed_copy(adapters["plain"], tmp_path / "unset", {"acts_on_odd_tokens": False, "window": 7})
    assert Delta.from_lora(unset, micro_base).kind == "lora"


def test_a_kind_that_only_a_later_peft_knows_is_refused(
    micro_base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_config, "_MERGEABLE_KINDS", adapter_config._MERGEABLE_KINDS - {"LORA"})
    with pytest.raises(UserError, match=r"peft_type is 'LORA'. It is newer than this version of SkillWeave"):
        Delta.from_lora(adapters["plain"], micro_base)
