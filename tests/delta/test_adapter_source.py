"""Where adapters come from: folders, folders in folders, and a hub (one that runs on this machine)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.fake_hub import fake_hub, turn_hub_to
from skillweave.delta.adapter_config import check_adapter_files
from skillweave.delta.adapter_source import adapter_folder
from skillweave.errors import UserError


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def at_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Lets huggingface_hub take the given address for the hub, with an empty cache."""

    def turn_to(address: str) -> None:
        turn_hub_to(address, tmp_path / "cache", monkeypatch)

    return turn_to


def test_a_folder_and_a_folder_in_it(tmp_path: Path) -> None:
    write_adapter(tmp_path / "run" / "epoch-3")
    assert adapter_folder(tmp_path / "run") == tmp_path / "run"
    assert adapter_folder(str(tmp_path / "run"), subfolder="epoch-3") == tmp_path / "run" / "epoch-3"


def test_several_adapters_are_named(tmp_path: Path) -> None:
    for name in ("epoch-1", "epoch-2"):
        write_adapter(tmp_path / "run" / name)
    with pytest.raises(UserError, match=r"2 adapters in folders of its own \(epoch-1, epoch-2\): name one with --sub"):
        check_adapter_files(tmp_path / "run")
    (tmp_path / "run" / "epoch-1" / "adapter_model.safetensors").rename(
        tmp_path / "run" / "epoch-1" / "adapter_model.bin"
    )
    with pytest.raises(UserError, match=r"pickle \(adapter_model\.bin\), which can run code"):
        check_adapter_files(tmp_path / "run" / "epoch-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subfolder": "../other"}, "name a folder inside the adapter's"),
        ({"subfolder": "/etc"}, "name a folder inside the adapter's"),
        ({"subfolder": "a\\b"}, "name a folder inside the adapter's"),
        ({"subfolder": ""}, "name a folder inside the adapter's"),
        ({"subfolder": "link"}, "leads out of"),
        ({"subfolder": "missing"}, "has no such folder"),
        ({"revision": "main"}, "is a folder, and only repositories of the hub have revisions"),
    ],
)
def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    (write_adapter(tmp_path / "run") / "link").symlink_to("/etc")
    with pytest.raises(UserError, match=message):
        adapter_folder(tmp_path / "run", **arguments)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../x", "owner/../name", "https://hub/owner/name"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no adapter is found at"):
        adapter_folder(name)


def test_from_the_hub_only_the_adapter_is_downloaded(tmp_path: Path, at_hub: Callable[[str], None]) -> None:
    repository = write_adapter(tmp_path / "repository")
    write_adapter(repository / "epoch-3")
    for other in ("model.safetensors", "optimizer.pt", "adapter_model.bin", "code.py", "epoch-3/trainer_state.json"):
        (repository / other).write_bytes(b"x" * 100)
    (repository / "epoch-3" / "chat_template.jinja").write_text("{{ messages }}")
    with fake_hub("owner/name", repository, ("main", "v2")) as (address, asked):
        at_hub(address)
        folder = adapter_folder("owner/name", revision="v2", subfolder="epoch-3")
        assert set(asked) == {f"epoch-3/{file.name}" for file in folder.iterdir()}
    names = {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
    assert {file.name for file in folder.iterdir()} == names
    # The hub is gone; what was downloaded is found.
    assert adapter_folder("owner/name", revision="v2", subfolder="epoch-3") == folder


def test_what_the_hub_lacks_is_said(tmp_path: Path, at_hub: Callable[[str], None]) -> None:
    write_adapter(tmp_path / "repository" / "epoch-3")
    with fake_hub("owner/name", tmp_path / "repository") as (address, _):
        at_hub(address)
        with pytest.raises(UserError, match=r"has no adapter_config\.json; it has adapters in epoch-3: name one with"):
            adapter_folder("owner/name")
        with pytest.raises(UserError, match="--revision v9: the hub's repository 'owner/name' has no such"):
            adapter_folder("owner/name", revision="v9")
        with pytest.raises(UserError, match="the hub has no repository 'owner/other'"):
            adapter_folder("owner/other")
    with pytest.raises(UserError, match=r"the hub cannot be reached"):
        adapter_folder("owner/never-seen")
