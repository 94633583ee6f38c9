"""Full deltas: round trips, refusals by name, files that survive, and memory."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.micro import micro_model, micro_tokenizer, save_micro
from helpers.tuned import FROZEN, save_tuned
from skillweave.base import Checkpoint, Sampling, fingerprint, generate, open_base
from skillweave.base.safetensors_io import plan_files, write_stream
from skillweave.delta import Delta, write_tuned
from skillweave.delta.arithmetic import applied, changed, difference, finite
from skillweave.errors import UserError
from skillweave.micro.tokenizer import VOCABULARY

SRC = Path(__file__).parents[2] / "src"
IDS = torch.arange(5, 100)[None]


@pytest.fixture
def half_base(tmp_path: Path) -> Path:
    """The micro base in bfloat16."""
    micro_model().bfloat16().save_pretrained(tmp_path / "half")
    micro_tokenizer().save_pretrained(tmp_path / "half")
    return tmp_path / "half"


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance of neighbouring numbers of ``dtype`` around ``value`` (float64)."""
    _, exponent = torch.frexp(value.double())
    return torch.finfo(dtype).eps * torch.exp2(exponent.double() - 1)


# -- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_base_plus_difference_is_within_the_stated_distance(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = torch.randn(200, 300).to(dtype)
    tuned = torch.cat([base[:100].float() + 0.02 * torch.randn(100, 300), torch.randn(100, 300)]).to(dtype)
    back = applied(base, difference(base, tuned, dtype))
    unit = ulp(torch.maximum(base.abs(), tuned.abs()), dtype)
    allowed = torch.where(base.sign() == tuned.sign(), unit, 2 * unit)
    error = (back.double() - tuned.double()).abs()
    assert bool((error <= allowed).all())
    if dtype == torch.bfloat16:
        assert (error[:100] == 0).float().mean() > 0.95, "fine-tuning moves weights little: nearly all come back as is"
        assert torch.equal(applied(base, difference(base, tuned, torch.float32)), tuned)


def test_blocks_do_not_change_the_result(monkeypatch) -> None:
    base, tuned = torch.randn(7, 5).bfloat16(), torch.randn(5, 7).bfloat16().T
    expected = (tuned.double() - base.double()).to(torch.bfloat16)
    monkeypatch.setattr("skillweave.delta.arithmetic._BLOCK", 4)
    assert torch.equal(difference(base, tuned, torch.bfloat16), expected)
    assert changed(base, tuned)
    assert not changed(base, base.float())
    assert not changed(torch.zeros(3), -torch.zeros(3))
    assert not changed(torch.ones(0), torch.ones(0))
    last = torch.ones(9)
    assert finite(last)
    assert not changed(last, torch.ones(9))
    last[8] = float("nan")
    assert not finite(last)


# -- round trip ------------------------------------------------------------------------------------------------------


def test_saved_loaded_and_applied_it_answers_like_the_tuned_model(half_base: Path, tmp_path: Path) -> None:
    tuned = save_tuned(half_base, tmp_path / "tuned", dtype=torch.bfloat16)
    made = Delta.between(half_base, tuned)
    made.provenance["method"] = "specialise"
    delta = Delta.from_pretrained(made.save_pretrained(tmp_path / "delta"))
    assert sorted(path.name for path in (tmp_path / "delta").iterdir()) == ["delta.json", "delta.safetensors"]
    assert delta.kind == "full"
    assert delta.provenance == {"tuned": str(tuned), "method": "specialise"}
    expected = set(Checkpoint(half_base).names()) - {FROZEN}
    assert set(delta.names()) == expected
    assert FROZEN not in delta
    old, new = load_file(half_base / "model.safetensors"), load_file(tuned / "model.safetensors")
    for name in delta.names():
        assert torch.equal(delta.tensor(name), (new[name].double() - old[name].double()).to(torch.bfloat16))
        assert delta.dtype(name) == torch.bfloat16
        assert not delta.whole(name)
    numbers = sum(old[name].numel() for name in expected)
    assert delta.nbytes == delta.bf16_nbytes == 2 * numbers
    base = open_base(half_base, device="cpu")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    made_of_it, direct = delta.apply(base), open_base(tuned, device="cpu")
    for name, tensor in made_of_it.model.state_dict().items():
        unit = ulp(torch.maximum(tensor.abs(), before[name].abs()), torch.bfloat16)
        assert bool(((tensor.double() - direct.model.state_dict()[name].double()).abs() <= 2 * unit).all()), name
    # A few weights are a unit of bfloat16 off, and where two tokens nearly tie a greedy answer may turn. So the logits:
    # next to how far the base's are from the tuned model's, they are the tuned model's.
    with torch.no_grad():
        ours, theirs, bases = (each.model(IDS).logits.float() for each in (made_of_it, direct, base))
    assert (ours - theirs).norm() < 0.02 * (bases - theirs).norm()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items()), "a copy"
    assert made_of_it.fingerprint == fingerprint(made_of_it.model) != base.fingerprint
    with pytest.raises(UserError, match="the delta belongs on"):
        delta.apply(made_of_it)
    assert delta.apply(base, in_place=True).model is base.model


def test_float32_differences_bring_bfloat16_weights_back_exactly(half_base: Path, tmp_path: Path) -> None:
    tuned = save_tuned(half_base, tmp_path / "tuned", dtype=torch.bfloat16, step=0.5)
    delta = Delta.between(half_base, tuned, dtype="float32")
    write_tuned(half_base, delta, tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(tuned)
    made_of_it, direct = delta.apply(open_base(half_base, device="cpu")), open_base(tuned, device="cpu")
    said = [
        generate(each.model, each.tokenizer, ["1+1=", "What is this?", "abc"], Sampling(max_new_tokens=12))
        for each in (made_of_it, direct)
    ]
    assert said[0] == said[1]
    assert delta.nbytes == 2 * delta.bf16_nbytes
    with pytest.raises(UserError, match="did you mean 'float32'"):
        Delta.between(half_base, tuned, dtype="float23")


def test_dtypes_of_the_sides_decide_the_stored_one(half_base: Path, micro_base: Path, tmp_path: Path) -> None:
    tuned = save_tuned(half_base, tmp_path / "tuned")
    assert {Delta.between(half_base, tuned).dtype(n) for n in Delta.between(half_base, tuned).names()} == {
        torch.bfloat16
    }
    assert Delta.between(micro_base, tuned).dtype("model.norm.weight") == torch.float32


def test_a_model_minus_itself_is_empty_and_still_saves(micro_base: Path, tmp_path: Path) -> None:
    delta = Delta.between(micro_base, micro_base)
    assert delta.names() == []
    assert delta.nbytes == 0
    loaded = Delta.from_pretrained(delta.save_pretrained(tmp_path / "delta"))
    assert loaded.names() == []
    assert loaded.apply(open_base(micro_base, device="cpu")).fingerprint == fingerprint(micro_base)


def test_models_in_memory_and_a_trained_base(micro_base: Path) -> None:
    base = open_base(micro_base, device="cpu")
    with torch.no_grad():
        base.model.model.norm.weight += 1
    for tuned in (base, base.model):
        delta = Delta.between(base, tuned)
        assert delta.names() == ["model.norm.weight"]
        assert delta.base_fingerprint == fingerprint(micro_base)
        assert torch.equal(delta.tensor("model.norm.weight"), torch.ones(64))
    applied_base = Delta.between(micro_base, base).apply(open_base(micro_base, device="cpu"))
    assert Delta.between(applied_base, base.model).names() == [], "an applied base stands for its model, not its files"


def test_a_delta_from_tensors(micro_base: Path, tmp_path: Path) -> None:
    tensors = {"model.norm.weight": torch.ones(64), "model.embed_tokens.weight": torch.zeros(len(VOCABULARY), 64)}
    delta = Delta(tensors, whole={"model.embed_tokens.weight"}, base_fingerprint=fingerprint(micro_base))
    delta.save_pretrained(tmp_path / "delta")
    model = Delta.from_pretrained(tmp_path / "delta").apply(open_base(micro_base, device="cpu")).model
    assert torch.equal(model.model.norm.weight, torch.full((64,), 2.0))
    assert not model.lm_head.weight.any()
    with pytest.raises(UserError, match=r"does not change 'model\.norm\.wait'; did you mean"):
        delta.tensor("model.norm.wait")
    misfit = Delta({"model.norm.weight": torch.ones(3)}, base_fingerprint=fingerprint(micro_base))
    with pytest.raises(UserError, match=r"'model\.norm\.weight' in the shape \(3,\).*has \(64,\)"):
        misfit.apply(open_base(micro_base, device="cpu"))


def test_the_written_model_is_an_ordinary_folder(half_base: Path, tmp_path: Path) -> None:
    tuned = save_tuned(half_base, tmp_path / "tuned", dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(half_base).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    shutil.copy(half_base / "tokenizer.json", tmp_path / "shards")
    shutil.copy(half_base / "tokenizer_config.json", tmp_path / "shards")
    (tmp_path / "shards" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}?")
    delta = Delta.between(half_base, tuned)
    out = write_tuned(tmp_path / "shards", delta, tmp_path / "out", shard_bytes=60_000)
    files = list(out.glob("*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) < 70_000
    one = write_tuned(half_base, delta, tmp_path / "one")
    assert [file.name for file in one.glob("*.safetensors*")] == ["model.safetensors"]
    in_memory = delta.apply(open_base(half_base, dtype="bfloat16", device="cpu")).fingerprint
    assert fingerprint(out) == fingerprint(one) == in_memory
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert open_base(out, device="cpu").tokenizer.chat_template == "{{ messages[0]['content'] }}?"
    with pytest.raises(UserError, match=r"the delta belongs on .*half"):
        write_tuned(tuned, delta, tmp_path / "never")
    assert not (tmp_path / "never").exists()


# -- added tokens, ties, one-sided tensors, NaN ----------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False])
def test_added_tokens_are_kept_whole_with_their_tokenizer(tmp_path: Path, tie: bool) -> None:
    folder = save_micro(tmp_path / "base", tie=tie)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = "{{ messages[0]['content'] }}<think>"
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    delta = Delta.between(folder, tmp_path / "tuned")
    expected = {"model.embed_tokens.weight"} | (set() if tie else {"lm_head.weight"})
    assert set(delta.names()) == expected
    assert all(delta.whole(name) for name in expected)
    shutil.copytree(tmp_path / "tuned", tmp_path / "kept")
    delta.save_pretrained(tmp_path / "delta")
    shutil.rmtree(tmp_path / "tuned")
    delta = Delta.from_pretrained(tmp_path / "delta")
    tuned = open_base(tmp_path / "kept", device="cpu")
    out = write_tuned(folder, delta, tmp_path / "out")
    assert fingerprint(out) == tuned.fingerprint
    for made in (delta.apply(open_base(folder, device="cpu")), open_base(out, device="cpu")):
        assert made.fingerprint == tuned.fingerprint, "exact where whole"
        assert made.model.config.vocab_size == len(tokenizer) == made.model.lm_head.weight.shape[0]
        assert made.tokenizer("<think>")["input_ids"] == [len(tokenizer) - 2]
        assert made.tokenizer.chat_template == tokenizer.chat_template
        assert generate(made.model, made.tokenizer, ["ab"]) == generate(tuned.model, tuned.tokenizer, ["ab"])


def test_an_unchanged_tokenizer_is_not_carried(micro_base: Path, tmp_path: Path) -> None:
    tuned = save_tuned(micro_base, tmp_path / "tuned")
    values = json.loads((tuned / "generation_config.json").read_text())
    (tuned / "generation_config.json").write_text(json.dumps({**values, "transformers_version": "9.9"}))
    assert not Delta.between(micro_base, tuned).carried
    (tuned / "generation_config.json").write_text(json.dumps({**values, "temperature": 0.3}))
    delta = Delta.between(micro_base, tuned)
    assert list(delta.carried.files) == ["generation_config.json"]
    out = write_tuned(micro_base, delta, tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.3
    assert (out / "tokenizer.json").read_bytes() == (micro_base / "tokenizer.json").read_bytes()


def test_an_end_of_a_tie_that_was_trained_alone_is_refused(tmp_path: Path) -> None:
    tied, untied = save_micro(tmp_path / "tied"), save_micro(tmp_path / "untied", tie=False)
    with pytest.raises(UserError, match=r"'lm_head\.weight'.*tied to 'model\.embed_tokens\.weight'"):
        Delta.between(tied, untied)


@pytest.mark.parametrize("untied", ["base", "tuned"])
def test_ties_are_judged_by_values(micro_base: Path, tmp_path: Path, untied: str) -> None:
    """A tool that writes both ends, with one value, and says tie_word_embeddings=false has the same model."""
    folders = {"base": micro_base, "tuned": save_tuned(micro_base, tmp_path / "tuned")}
    folders[untied] = Path(shutil.copytree(folders[untied], tmp_path / "untied"))
    tensors = load_file(folders[untied] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folders[untied] / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folders[untied] / "config.json").read_text())
    (folders[untied] / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    delta = Delta.between(folders["base"], folders["tuned"], dtype="float32")
    assert ("lm_head.weight" in delta) == (untied == "base")
    written = AutoModelForCausalLM.from_pretrained(write_tuned(folders["base"], delta, tmp_path / "out"))
    wanted = AutoModelForCausalLM.from_pretrained(folders["tuned"])
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(written.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_tied_embeddings_move_together(micro_base: Path, tmp_path: Path) -> None:
    delta = Delta.between(micro_base, save_tuned(micro_base, tmp_path / "tuned"))
    model = delta.apply(open_base(micro_base, device="cpu")).model
    assert "lm_head.weight" not in delta
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_tensor_of_one_side_is_named(micro_base: Path, tmp_path: Path, side: str) -> None:
    folders = {"base": micro_base, "tuned": micro_base, side: save_micro(tmp_path / "more", layers=3)}
    with pytest.raises(UserError, match=rf"'model\.layers\.2\.\S+' is in the {side}.*only"):
        Delta.between(folders["base"], folders["tuned"])


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_tensor_that_no_part_of_the_model_reads_is_said(
    micro_base: Path, tmp_path: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"base": micro_base, "tuned": save_tuned(micro_base, tmp_path / "tuned")}
    folders[side] = Path(shutil.copytree(folders[side], tmp_path / "more"))
    tensors = load_file(folders[side] / "model.safetensors")
    tensors["v_head.summary.weight"] = torch.ones(64)
    save_file(tensors, folders[side] / "model.safetensors", metadata={"format": "pt"})
    delta = Delta.between(folders["base"], folders["tuned"])
    assert delta.names()
    assert "v_head.summary.weight" not in delta
    assert "'v_head.summary.weight'" in capsys.readouterr().err


def test_another_shape_and_another_architecture_are_named(micro_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embed_tokens\.weight. has the shape \(102, 32\).*\(102, 64\)"):
        Delta.between(micro_base, save_micro(tmp_path / "narrow", hidden=32))
    with pytest.raises(UserError, match=r"'model\.layers\.2\."):
        Delta.between(micro_base, save_micro(tmp_path / "deep", layers=3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(micro_base: Path, tmp_path: Path, bad: float) -> None:
    tuned = save_tuned(micro_base, tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 5] = bad
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"'model\.layers\.1\.self_attn\.v_proj\.weight'.*NaN or infinity"):
        Delta.between(micro_base, tuned)


def test_the_wrong_base_is_told_the_right_one(micro_base: Path, tmp_path: Path) -> None:
    delta = Delta.between(micro_base, save_tuned(micro_base, tmp_path / "tuned"))
    other = open_base(save_micro(tmp_path / "other", seed=3), device="cpu")
    before = fingerprint(other.model)
    with pytest.raises(UserError) as caught:
        delta.apply(other, in_place=True)
    assert str(micro_base) in str(caught.value)
    assert delta.base_fingerprint[:19] in str(caught.value)
    assert other.fingerprint[:19] in str(caught.value)
    assert fingerprint(other.model) == before


# -- damaged, missing, newer; full disks -----------------------------------------------------------------------------


@pytest.fixture
def saved(micro_base: Path, tmp_path: Path) -> Path:
    return Delta.between(micro_base, save_tuned(micro_base, tmp_path / "tuned")).save_pretrained(tmp_path / "delta")


def test_damage_is_named(saved: Path, micro_base: Path) -> None:
    card = json.loads((saved / "delta.json").read_text())
    data = bytearray((saved / "delta.safetensors").read_bytes())
    data[-3] ^= 1
    (saved / "delta.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"delta\.safetensors is damaged: its SHA-256"):
        Delta.from_pretrained(saved)
    (saved / "delta.safetensors").unlink()
    with pytest.raises(UserError, match=r"delta\.safetensors is missing"):
        Delta.from_pretrained(saved)
    for change, message in (
        ({"schema_version": 99}, "schema version 99.*Upgrade"),
        ({"kind": "ful"}, "kind: "),
        ({"more": 1}, "more: "),
    ):
        (saved / "delta.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(UserError, match=message):
            Delta.from_pretrained(saved)
    (saved / "delta.json").unlink()
    with pytest.raises(UserError, match=r"has no delta\.json"):
        Delta.from_pretrained(saved)
    with pytest.raises(UserError, match=r"has no delta\.json"):
        Delta.from_pretrained(micro_base)


def test_a_tensor_that_the_file_lacks_is_named(saved: Path) -> None:
    card = json.loads((saved / "delta.json").read_text())
    card["entries"]["model.ghost.weight"] = card["entries"]["model.norm.weight"]
    (saved / "delta.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"does not have the tensor 'model\.ghost\.weight'"):
        Delta.from_pretrained(saved)
    del card["entries"]["model.ghost.weight"]
    card["entries"]["model.norm.weight"]["shape"] = [65]
    (saved / "delta.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is float32 \(64,\)"):
        Delta.from_pretrained(saved)


def test_a_delta_saves_over_itself(saved: Path) -> None:
    before = (saved / "delta.safetensors").read_bytes()
    Delta.from_pretrained(saved).save_pretrained(saved)
    assert (saved / "delta.safetensors").read_bytes() == before


def test_an_error_names_the_folder_that_the_delta_was_read_from(saved: Path, micro_base: Path) -> None:
    delta = Delta.from_pretrained(saved)
    with pytest.raises(UserError, match=f"^{re.escape(str(saved))}: the delta belongs on .*, not on other "):
        delta.check_base("sha256:0", "other")
    with pytest.raises(UserError, match=f"^{re.escape(str(saved))}: the delta does not change 'model.nrm'"):
        delta.tensor("model.nrm")
    in_memory = Delta({"model.norm.weight": torch.ones(64)}, base_fingerprint=fingerprint(micro_base))
    with pytest.raises(UserError, match=r"^the delta belongs on the base "):
        in_memory.check_base("sha256:0")


def test_a_full_disk_leaves_the_old_artefact(micro_base: Path, disk_of: Callable[[str], Path]) -> None:
    disk = disk_of("600k")
    small = Delta({"model.norm.weight": torch.ones(64)}, base_fingerprint=fingerprint(micro_base))
    small.save_pretrained(disk / "delta")
    large = Delta({"model.norm.weight": torch.ones(200_000)}, base_fingerprint=fingerprint(micro_base))
    with pytest.raises(UserError, match=r"no space left on the disk for the delta: .* needs at least 800.0 kB"):
        large.save_pretrained(disk / "delta")
    assert Delta.from_pretrained(disk / "delta").shape("model.norm.weight") == (64,)
    assert [path.name for path in disk.iterdir()] == ["delta"]


def test_a_failed_write_leaves_the_old_artefact(saved: Path, monkeypatch) -> None:
    before = (saved / "delta.safetensors").read_bytes()

    def full(*args: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("skillweave.delta.source.write_stream", full)
    with pytest.raises(UserError, match="no space left"):
        Delta.from_pretrained(saved).save_pretrained(saved)
    assert (saved / "delta.safetensors").read_bytes() == before
    assert [path for path in saved.parent.iterdir() if path.name.startswith(".delta")] == []


# -- streaming -------------------------------------------------------------------------------------------------------


def test_streamed_files_are_read_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(3, 5).bfloat16().T,
        "wide": torch.randn(2, 2).double(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.5),
    }
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_stream(tmp_path / "x.safetensors", specs, tensors.__getitem__)
    back = load_file(tmp_path / "x.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(ValueError, match="announced"):
        write_stream(tmp_path / "y.safetensors", {**specs, "odd": ((4,), torch.uint8)}, tensors.__getitem__)


def test_files_are_planned_within_the_limit() -> None:
    specs = {name: ((size,), torch.uint8) for name, size in zip("abcde", (4, 4, 3, 20, 1), strict=True)}
    plan = plan_files(specs, "model", 10)
    assert list(plan.values()) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert next(iter(plan)) == "model-00001-of-00004.safetensors"
    assert plan_files(specs, "model", 100) == {"model.safetensors": list("abcde")}
    assert plan_files({}, "delta") == {"delta.safetensors": []}


# 50 MB a side in tensors of 2 MB: taking, saving and writing must not need the room of one side.
MEMORY = """
import sys
from pathlib import Path
from skillweave.base import fingerprint
from skillweave.delta import Delta, write_tuned

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

base, tuned, out = map(Path, sys.argv[1:])
fingerprint(base)  # imports
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = kilobytes("VmRSS:")
delta = Delta.between(base, tuned)
delta.save_pretrained(out / "delta")
write_tuned(base, Delta.from_pretrained(out / "delta"), out / "model")
print((kilobytes("VmHWM:") - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_stays_near_one_tensor(tmp_path: Path) -> None:
    model = micro_model(hidden=512, layers=6)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "tuned")
    size = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**20
    command = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in ("base", "tuned", "out"))]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert size > 45
    assert float(done.stdout) < 40, f"{done.stdout.strip()} MB more, for models of {size:.0f} MB"
