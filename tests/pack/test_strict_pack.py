"""Packs that anyone may have written: invalid content is refused with the file and the key, even if the hashes fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.small_pack import DOWN, NORM, UP, Q, make_pack, put, rehash
from skillweave.cli.contents import show_pack
from skillweave.delta.carry import check_from_base
from skillweave.errors import UserError
from skillweave.files.hashes import sha256_file
from skillweave.pack import LowRankEntry, PackCard, Skillpack, check_name, pack_int4, read_stored
from skillweave.pack.card import card_text
from skillweave.pack.values import check_values

GROUP = "model.layers.0.self_attn:q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pack().save_pretrained(tmp_path / "pack")


def edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "skillpack.json").read_text())
    change(card)
    (folder / "skillpack.json").write_text(json.dumps(card))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors and the hash on the card, as the author of a pack could."""
    tensors = load_file(folder / "skillpack.safetensors")
    change(tensors)
    save_file(tensors, folder / "skillpack.safetensors")
    rehash(folder)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(f"{DOWN}.A_scale", 3, float("nan")), rf"'{DOWN}\.A_scale' holds NaN or infinity"),
        (put(f"{DOWN}.B_scale", 0, float("inf")), rf"'{DOWN}\.B_scale' holds NaN or infinity"),
        (put(f"{Q}.A_scale", 0, -0.5), "holds the scale -0.5; scales are not negative"),
        (put(f"{DOWN}.A", (0, 0), -128), "holds the code -128; codes are from -127 to 127"),
        (put(f"{DOWN}.B", (2, 127), -128), "holds the code -128"),
        (put(f"{Q}.B", (0, 0), 0x08), "holds the code -8; codes of 4 bits are from -7 to 7"),
        (put(f"{Q}.B", (0, 0), 0x80), "holds the code -8"),
        (put(f"{Q}.A", (0, 2), 0x10), rf"'{Q}\.A' has a code beyond its 5 columns"),
        (put(f"{GROUP}.smooth", 5, 0.0), "smooth' holds 0; what inputs are divided by is at least 6.1e-05"),
        (put(f"{GROUP}.smooth", 5, 6e-8), r"smooth' holds 5\.96e-08"),
        (put(f"{GROUP}.smooth", 5, -1.0), "smooth' holds -1;"),
        (put(f"{GROUP}.smooth", 5, float("nan")), r"smooth' holds NaN"),
        (put(f"{UP}.A", (0, 0), float("inf")), rf"'{UP}\.A' holds NaN or infinity"),
        (put(NORM, 0, float("nan")), rf"'{NORM}' holds NaN"),
        (put("model.embed_tokens.weight", (102, 63), float("-inf")), "holds NaN or infinity"),
        (
            lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].double().fill_(-1e300)}),
            "a number beyond float32",
        ),
    ],
)
def test_numbers_that_no_codec_writes(folder: Path, change, message: str) -> None:
    edit_tensors(folder, change)
    with pytest.raises(UserError, match=rf"(?s)skillpack\.safetensors: the tensor.*{message}"):
        Skillpack.from_pretrained(folder)


def test_the_extreme_numbers_that_codecs_write_are_read(folder: Path) -> None:
    def extreme(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{DOWN}.A"].fill_(-127)
        tensors[f"{Q}.B"].fill_(0x99)  # -7 and -7
        tensors[f"{Q}.A_scale"].zero_()
        tensors[f"{Q}.B_scale"].fill_(torch.finfo(torch.float16).max)
        tensors[f"{GROUP}.smooth"].fill_(1 / 1024)

    edit_tensors(folder, extreme)
    assert int(Skillpack.from_pretrained(folder).lowrank_parts(Q).B.min()) == -7


@pytest.mark.parametrize("width", [1, 2, 5, 6])
@pytest.mark.parametrize("code", range(-8, 8))
def test_four_bit_codes_against_their_unpacked_values(code: int, width: int) -> None:
    """The test knows the unpacked codes; the check reads the packed bytes."""
    codes = torch.zeros(3, width, dtype=torch.int8)
    codes[1, width - 1] = code
    tensors = {
        "w.A": pack_int4(codes), "w.B": pack_int4(torch.ones(width, 4, dtype=torch.int8)),
        "w.A_scale": torch.ones(3).half(), "w.B_scale": torch.ones(width).half(),
    }  # fmt: skip
    card = PackCard(
        name="x",
        base={"ref": "b", "fingerprint": "f"},
        codec={"name": "c"},
        entries={"w": LowRankEntry(shape=(3, 4), rank=width, bits=4, group="g")},
    )
    if code == -8:
        with pytest.raises(UserError, match="code -8"):
            check_values(card, tensors, "here")
    else:
        check_values(card, tensors, "here")


# -- cards -------------------------------------------------------------------------------------------------------------


def deep(levels: int) -> dict[str, Any]:
    return {"x": deep(levels - 1)} if levels else {}


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (lambda c: c.pop("schema_version"), "schema_version is missing"),
    "version 0": (lambda c: c.update(schema_version=0), "schema_version is 0"),
    "version -1": (lambda c: c.update(schema_version=-1), "schema_version is -1"),
    "version true": (lambda c: c.update(schema_version=True), "schema_version is True"),
    "version text": (lambda c: c.update(schema_version="1"), "schema_version is '1'"),
    "version 1.5": (lambda c: c.update(schema_version=1.5), "schema_version is 1.5"),
    "name with a line feed": (lambda c: c.update(name="x\n"), "name: .*cannot name a pack"),
    "name of the base": (lambda c: c.update(name="base"), "name: .*stands for the plain base"),
    "name of the router's": (lambda c: c.update(name="Auto"), "name: .*stands for the router's choice"),
    "rank 0": (lambda c: c["entries"][Q].update(rank=0), "rank"),
    "rank true": (lambda c: c["entries"][Q].update(rank=True), "rank: .*valid integer"),
    "rank text": (lambda c: c["entries"][Q].update(rank="5"), "rank: .*valid integer"),
    "rank huge": (lambda c: c["entries"][Q].update(rank=2**60), "rank"),
    "bits 5": (lambda c: c["entries"][Q].update(bits=5), "bits"),
    "smooth text": (lambda c: c["entries"][Q].update(smooth="yes"), "smooth: .*valid boolean"),
    "a dimension of nothing": (lambda c: c["entries"][NORM].update(shape=[0]), "shape"),
    "a negative dimension": (lambda c: c["entries"][NORM].update(shape=[-64]), "shape"),
    "many dimensions": (lambda c: c["entries"][NORM].update(shape=[1] * 50), "shape"),
    "an entry's name with an escape": (lambda c: c["entries"].update({"\x1b[2J": c["entries"][NORM]}), "entries"),
    "an entry's name with markup": (lambda c: c["entries"].update({"`<b>": c["entries"][NORM]}), "entries"),
    "an entry without a name": (lambda c: c["entries"].update({"": c["entries"][NORM]}), "entries"),
    "a group with a line feed": (lambda c: c["entries"][Q].update(group="a\nb"), "group"),
    "a file that is none of a pack": (lambda c: c["files"].update({"x.py": "0" * 64}), r"files: 'x\.py' is no file"),
    "a file above": (lambda c: c["files"].update({"../up": "0" * 64}), "is not a plain file name"),
    "an absolute file": (lambda c: c["files"].update({"/etc/passwd": "0" * 64}), "is not a plain file name"),
    "a hash that is none": (lambda c: c["files"].update({"skillpack.safetensors": "0"}), "files"),
    "no hash": (lambda c: c["files"].clear(), "damaged: .*names none"),
    "bytes below nothing": (lambda c: c["bytes"].update(total=-1), r"bytes\.total"),
    "bytes true": (lambda c: c["bytes"].update(total=True), r"bytes\.total"),
    "scores NaN": (lambda c: c.update(scores={"kl": float("nan")}), "nan"),
    "scores infinite": (lambda c: c.update(scores={"kl": [float("inf")]}), "inf"),
    "scores a list": (lambda c: c.update(scores=[1]), "scores: .*dictionary"),
    "audit a text": (lambda c: c.update(audit="clean"), "audit: .*dictionary"),
    "deep settings": (lambda c: c["codec"].update(settings=deep(60)), "more than 32 deep"),
    "endless scores": (lambda c: c.update(scores={"x": "y" * 2**21}), "more than 1,048,576 characters"),
    "a method in two lines": (lambda c: c.update(method="a\nb"), "method: .*line feeds"),
    "a codec of too many words": (lambda c: c["codec"].update(name="a" * 5000), r"codec\.name"),
    "an unknown field of the base": (lambda c: c["base"].update(code="x"), r"base\.code"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_refused_by_key(folder: Path, change, message: str) -> None:
    edit_card(folder, change)
    with pytest.raises(UserError, match=rf"(?si)skillpack\.(json|safetensors).*{message}"):
        read_stored(folder)


@pytest.mark.parametrize("name", ["files/evil.py", "files/x/y.json", "files/model.bin", "files/config.json"])
def test_a_file_that_may_not_travel_is_refused_before_it_is_used(folder: Path, name: str) -> None:
    """``skillweave inspect`` makes the same checks as ``read_stored`` and no others."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    edit_card(folder, lambda card: card["files"].update({name: sha256_file(folder / name)}))
    with pytest.raises(UserError, match=f"'{name}' may not travel"):
        read_stored(folder)


def test_only_a_vocabulary_may_be_taken_from_the_base(folder: Path) -> None:
    edit_card(folder, lambda card: card.update(from_base={"config.json": "0" * 16}))
    with pytest.raises(UserError, match=r"'config\.json' is not a file that a tokenizer may take"):
        read_stored(folder)


def test_a_vocabulary_that_the_base_does_not_have_is_never_passed_over(folder: Path, tmp_path: Path) -> None:
    """This also holds if no other file of a tokenizer travels with it."""
    edit_card(folder, lambda card: card.update(from_base={"tokenizer.json": "0" * 16}))
    carried = Skillpack.from_pretrained(folder).carried
    assert carried.has_tokenizer
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        check_from_base(carried, tmp_path)


def test_a_pack_of_version_1_is_read(folder: Path, tmp_path: Path) -> None:
    edit_card(folder, lambda card: card.update(schema_version=1))
    pack = Skillpack.from_pretrained(folder)
    assert pack.card.schema_version == 1
    assert json.loads((pack.save_pretrained(tmp_path / "again") / "skillpack.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize("name", ["sort\n", "a b", "", ".hidden", "../x", "x" * 65, "naïve", "a/b", "BASE"])
def test_what_a_pack_may_not_be_called(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a pack"):
        check_name(name)


# -- one tensor, one entry; one group, one meaning ---------------------------------------------------------------------


def test_two_entries_that_name_one_tensor(folder: Path) -> None:
    edit_card(folder, lambda card: card["entries"].update({f"{UP}.A": {"kind": "difference", "shape": [128, 2]}}))
    with pytest.raises(UserError, match=rf"the entry '{UP}' and the entry '{UP}\.A' both name the tensor '{UP}\.A'"):
        Skillpack.from_pretrained(folder)


def test_an_entry_that_names_the_smooth_of_a_group(folder: Path) -> None:
    edit_card(folder, lambda card: card["entries"].update({f"{GROUP}.smooth": {"kind": "difference", "shape": [64]}}))
    with pytest.raises(UserError, match=r"both name the tensor '.*smooth'"):
        Skillpack.from_pretrained(folder)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_group_of_matrices_with_unlike_inputs(folder: Path, smooth: bool) -> None:
    """``DOWN`` has 128 inputs and ``Q`` has 64, so no input fits both."""
    edit_card(folder, lambda card: card["entries"][DOWN].update(group=GROUP, smooth=smooth))
    with pytest.raises(UserError, match=r"smooth|are fed one input: their widths"):
        Skillpack.from_pretrained(folder)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skillpack.json", "skillpack.safetensors"])
def test_links_and_pipes_in_place_of_files(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name} is a link"):
        Skillpack.from_pretrained(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=r"is not a skillpack|is a pipe, a device or a socket"):
        Skillpack.from_pretrained(folder)


def test_a_pack_in_the_hubs_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--me--pack" / "snapshots" / "c0ffee" / "sub"
    blobs = tmp_path / "hub" / "models--me--pack" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in list(folder.iterdir()):
        shutil.move(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"blob-{file.name}", snapshot))
    assert Skillpack.from_pretrained(snapshot).card.name == "json-calls"
    # A blob that is itself a link leads out again, and so does a link past the blobs.
    shutil.move(blobs / "blob-skillpack.safetensors", tmp_path / "private")
    (blobs / "blob-skillpack.safetensors").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"skillpack\.safetensors is a link"):
        Skillpack.from_pretrained(snapshot)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**63]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": at} for name, at in (("x", [0, 4]), ("y", [2, 6]))},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}},
    ],
)  # fmt: skip
def test_headers_are_checked_before_anything_is_allocated(folder: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    (folder / "skillpack.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    rehash(folder)
    with pytest.raises(UserError, match=r"skillpack\.safetensors is not a safetensors file"):
        Skillpack.from_pretrained(folder)


def test_a_header_that_claims_to_be_longer_than_the_file(folder: Path) -> None:
    (folder / "skillpack.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    rehash(folder)
    with pytest.raises(UserError, match="is not a safetensors file"):
        Skillpack.from_pretrained(folder)


# -- what is shown -----------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    [0.9, 0.8], None, True, "text", {"mean": "high", "low": 0, "high": 1, "n": 3}, {"mean": 1e308, "low": 0, "n": 1},
    {"mean": [1], "n": "x"}, "\x1b[31mred", "a\nb\rc", "[bold]x[/bold]", "![x](http://evil/x)", "<script>x</script>",
    "| a | b |", "`x`", "y" * 100_000, {"deep": {"deeper": [1, [2, [3]]]}}, "\u202egnp.exe",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_measures_are_shown_whatever_they_hold(tmp_path: Path, capsys, value: Any) -> None:
    pack = make_pack()
    shares = {"odd": value, "\x1b[2J|<b>": 1, "z" * 50_000: 0.5}
    for given in (shares, value, {key: share for key, share in shares.items() if key != "odd"}):
        pack.card.codec.measured = {"left_out": given, "left_out_share": 0.5, "weight_error": value, "rank": value}
        show_pack(pack.card, tmp_path)
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown) < 20_000


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("field", ["scores", "data", "audit", "settings"])
def test_free_fields_are_shown_whatever_they_hold(tmp_path: Path, capsys, field: str, value: Any) -> None:
    pack = make_pack()
    if field == "settings":
        pack.card.codec.settings = {"odd": value, "\x1b[2J|<b>": 1}
    else:
        setattr(pack.card, field, {"odd": value, "\x1b[2J|<b>": 1})
    loaded = Skillpack.from_pretrained(pack.save_pretrained(tmp_path / "pack"))
    show_pack(loaded.card, tmp_path / "pack")
    shown, readme = capsys.readouterr().out, card_text(loaded.card)
    for text in (shown, readme):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert len(text) < 20_000
    unescaped = readme.replace("\\<", "").replace("\\[", "").replace("\\`", "")
    assert "<" not in unescaped
    assert "](" not in unescaped.replace("\\]", "")
    rows = [line for line in readme.split("\n") if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows), "every row keeps its two cells"
    if isinstance(value, str) and len(value) > 1000:
        assert "(100,000 characters, cut)" in readme


def test_a_card_with_thousands_of_scores_is_cut_with_a_note(tmp_path: Path, capsys) -> None:
    pack = make_pack()
    pack.card.scores = {f"arm-{index}": index for index in range(3000)}
    show_pack(pack.card, tmp_path)
    assert "and 2950 more scores" in capsys.readouterr().out
    assert "and 2950 more" in card_text(pack.card)
