"""What a fine-tune changes beside its weights: found, stored in few bytes, and whole again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from helpers.travelling import LETTERS, TEMPLATE, tokenizer
from skillweave.delta.carry import (
    CHANGES_FILE,
    Carried,
    changed_files,
    compact,
    may_travel,
    read_files,
    save_files,
    write_carried,
)
from skillweave.errors import UserError
from skillweave.files.folder import Folder
from skillweave.files.read import open_file


def folder(place: Path, speaks: PreTrainedTokenizerFast | None = None, **files: object) -> Path:
    """A folder with a tokenizer and JSON files (``generation_config=...``)."""
    place.mkdir()
    if speaks is not None:
        speaks.save_pretrained(place)
    for name, values in files.items():
        (place / f"{name}.json").write_text(json.dumps(values))
    return place


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base", tokenizer(), generation_config={"eos_token_id": 1}, config={"eos_token_id": 1})


# -- what differs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "travels"),
    [
        (lambda tuned: None, []),
        (lambda tuned: edit(tuned / "generation_config.json", transformers_version="4.0"), []),
        (lambda tuned: edit(tuned / "tokenizer.json", truncation={"max_length": 9}), []),
        (lambda tuned: edit(tuned / "tokenizer_config.json", name_or_path="elsewhere"), []),
        (lambda tuned: (tuned / "tokenizer.json").unlink(), []),
        (lambda tuned: edit(tuned / "generation_config.json", eos_token_id=[1, 7]), ["generation_config.json"]),
        (lambda tuned: edit(tuned / "config.json", eos_token_id=[1, 7]), ["generation_config.json"]),
        (lambda tuned: edit(tuned / "config.json", text_config={"eos_token_id": 9}), ["generation_config.json"]),
        (
            lambda tuned: (tuned / "chat_template.jinja").write_text(TEMPLATE),
            ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"],
        ),
        (
            lambda tuned: edit(tuned / "tokenizer_config.json", chat_template=TEMPLATE),
            ["tokenizer.json", "tokenizer_config.json"],
        ),
        (
            lambda tuned: edit(
                tuned / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": TEMPLATE}]
            ),
            ["tokenizer.json", "tokenizer_config.json"],
        ),
    ],
)
def test_what_travels(tmp_path: Path, base: Path, change, travels: list[str]) -> None:
    tuned = folder(tmp_path / "tuned", tokenizer(), generation_config={"eos_token_id": 1}, config={"eos_token_id": 1})
    change(tuned)
    assert sorted(changed_files(base, tuned).files) == travels


def test_one_template_in_two_places_is_no_change(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", tokenizer(template=TEMPLATE))
    assert (base / "chat_template.jinja").is_file()
    tuned = folder(tmp_path / "tuned", tokenizer())
    edit(tuned / "tokenizer_config.json", chat_template=TEMPLATE)
    assert not changed_files(base, tuned)


def test_merges_are_the_same_in_their_old_and_new_form(tmp_path: Path) -> None:
    merges: dict[str, list] = {"base": ["a b", "c d"], "tuned": [["a", "b"], ["c", "d"]]}
    places = [folder(tmp_path / name, tokenizer={"model": {"merges": merges[name]}}) for name in merges]
    assert not changed_files(*places)


def test_end_tokens_of_the_config_join_those_of_the_generation_config(tmp_path: Path, base: Path) -> None:
    tuned = folder(
        tmp_path / "tuned", generation_config={"eos_token_id": [50], "top_p": 0.9}, config={"eos_token_id": 60}
    )
    written = json.loads(changed_files(base, tuned).files["generation_config.json"])
    assert written == {"eos_token_id": [50, 60], "top_p": 0.9}


def test_named_templates_travel(tmp_path: Path, base: Path) -> None:
    tuned = folder(tmp_path / "tuned", tokenizer(template={"default": "one", "tool_use": "two"}))
    found = changed_files(base, tuned)
    assert {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"} <= set(found.files)
    stored = compact(found, base)
    (tmp_path / "back").mkdir()
    write_carried(stored, base, tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back.chat_template == {"default": "one", "tool_use": "two"}


# -- in few bytes ------------------------------------------------------------------------------------------------------


def round_trip(tmp_path: Path, base: Path, tuned: Path) -> tuple[Carried, Path]:
    stored = compact(changed_files(base, tuned), base)
    save_files(stored, tmp_path / "pack")
    hashes = save_files(stored, tmp_path / "pack")
    read = read_files(Folder(tmp_path / "pack", "card.json", "Again."), hashes, stored.from_base)
    assert read == stored
    (tmp_path / "back").mkdir()
    write_carried(read, base, tmp_path / "back")
    return stored, tmp_path / "back"


@pytest.mark.parametrize(
    ("speaks", "held", "kept"),
    [
        (tokenizer(template=TEMPLATE), {"chat_template.jinja", "tokenizer_config.json"}, {"tokenizer.json"}),
        (tokenizer("<a>", "<b>"), {CHANGES_FILE, "tokenizer_config.json"}, {"tokenizer.json"}),
    ],
)
def test_an_unchanged_vocabulary_is_not_stored(tmp_path: Path, base: Path, speaks, held, kept) -> None:
    tuned = folder(tmp_path / "tuned", speaks)
    stored, back = round_trip(tmp_path, base, tuned)
    assert (set(stored.files), set(stored.from_base)) == (held, kept)
    assert stored.nbytes < 0.5 * (tuned / "tokenizer.json").stat().st_size
    ours, theirs = AutoTokenizer.from_pretrained(back), AutoTokenizer.from_pretrained(tuned)
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert (ours.chat_template, ours.special_tokens_map) == (theirs.chat_template, theirs.special_tokens_map)


def test_another_vocabulary_is_stored_whole(tmp_path: Path, base: Path) -> None:
    tuned = folder(tmp_path / "tuned", tokenizer())
    values = json.loads((tuned / "tokenizer.json").read_text())
    values["model"]["vocab"]["new"] = len(LETTERS)
    (tuned / "tokenizer.json").write_text(json.dumps(values))
    stored, back = round_trip(tmp_path, base, tuned)
    assert "tokenizer.json" in stored.files
    assert stored.from_base == {}
    assert json.loads((back / "tokenizer.json").read_text()) == values


def test_a_template_that_was_taken_away_stays_away(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", tokenizer(template=TEMPLATE))
    tuned = folder(tmp_path / "tuned", tokenizer("<a>"))
    _, back = round_trip(tmp_path, base, tuned)
    assert AutoTokenizer.from_pretrained(back).chat_template is None


def test_another_tokenizer_in_the_base_is_told(tmp_path: Path, base: Path) -> None:
    tuned = folder(tmp_path / "tuned", tokenizer(template=TEMPLATE))
    stored = compact(changed_files(base, tuned), base)
    edit(base / "tokenizer.json", padding={"length": 3})  # a note of the last batch: the same tokenizer
    write_carried(stored, base, tmp_path / "tuned")
    edit(base / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(UserError, match=r"says something else in its tokenizer\.json"):
        write_carried(stored, base, tmp_path / "tuned")
    (base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        write_carried(stored, base, tmp_path / "tuned")


# -- from strangers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("additional_chat_templates/rag.jinja", True),
        ("additional_chat_templates/../rag.jinja", False),
        ("additional_chat_templates/a/b.jinja", False),
        ("config.json", False),
        ("modeling.py", False),
        ("../tokenizer.json", False),
        ("model.safetensors", False),
    ],
)
def test_only_listed_files_may_travel(tmp_path: Path, name: str, may: bool) -> None:
    assert may_travel(name) is may
    if not may:
        with pytest.raises(UserError, match=r"may not travel with it.*Copy it again"):
            read_files(Folder(tmp_path, "card.json", "Copy it again."), {f"files/{name}": "0" * 64}, {})


def test_damage_is_told(tmp_path: Path) -> None:
    hashes = save_files(Carried({"generation_config.json": b"{}"}), tmp_path)
    folder = Folder(tmp_path, "card.json", "Again.")
    file = tmp_path / "files" / "generation_config.json"
    file.write_bytes(b"{ }")
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        read_files(folder, hashes, {})
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_files(folder, hashes, {})
    (tmp_path / "elsewhere").write_bytes(b"{}")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        read_files(folder, hashes, {})
    with pytest.raises(UserError, match="may take from the base"):
        read_files(folder, {}, {"config.json": "x"})


def test_each_file_that_travels_is_opened_once(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = folder(tmp_path / "tuned", tokenizer("<a>", template=TEMPLATE))
    artefact = tmp_path / "artefact"
    hashes = save_files(changed_files(base, tuned), artefact)
    opened: list[str] = []

    def counted(path: str | Path, *arguments: str) -> io.BufferedReader:
        opened.append(str(Path(path).relative_to(artefact)))
        return open_file(path, *arguments)

    monkeypatch.setattr("skillweave.files.read.open_file", counted)
    monkeypatch.setattr("skillweave.files.hashes.open_file", counted)
    read_files(Folder(artefact, "delta.json", "Again."), hashes, {})
    assert sorted(opened) == sorted(hashes)
