"""The whole server on a micro model: every pack, a budget for packs, pinned packs, and what cannot be opened."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.errors import UserError
from skillweave.serve.app import create_app
from skillweave.serve.engine_service import EngineService
from skillweave.serve.open_service import open_service
from skillweave.serve.residency import PackMemory
from skillweave.serve.settings import ServeConfig
from skillweave.weave import Weave
from skillweave.weave.compiled import compiled

NAMES = ("one", "two", "three")
KEY = "sw-0123456789abcdef"


@pytest.fixture(scope="module")
def weave(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a weave with three packs of about the same size, and beside it the folder of a fourth."""
    folder = tmp_path_factory.mktemp("served")
    base = open_base(str(micro_base), dtype="float32")
    packs = {
        name: random_pack(base.model, base.fingerprint, name=name, seed=seed)
        for seed, name in enumerate((*NAMES, "four"))
    }
    packs["four"].save_pretrained(folder / "four")
    return Weave.write(folder / "weave", base, {name: packs[name] for name in NAMES})


@contextmanager
def client_of(service: EngineService, settings: ServeConfig) -> Iterator[TestClient]:
    app = create_app(service, settings, KEY, write_log=lambda _: None)
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        _settled(client)
        assert app.state.admission.failure is None
        yield client


def _settled(client: TestClient) -> None:
    """Wait until the engine is open or has failed."""
    until = time.monotonic() + 60
    while client.get("/ready").json()["status"] == "starting":
        assert time.monotonic() < until
        time.sleep(0.05)


def ask(client: TestClient, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "3 1 2"}], "max_tokens": 4, "temperature": 0}
    return client.post("/v1/chat/completions", json=body)


def test_every_pack_answers_as_in_the_weave(weave: Path) -> None:
    settings = ServeConfig()
    with client_of(open_service(str(weave), settings), settings) as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert listed == ["base", *NAMES]
        texts = {name: ask(client, name).json()["choices"][0]["message"]["content"] for name in listed}
    opened = Weave.from_pretrained(weave)
    wanted = opened.generate(["3 1 2"] * 4, packs=[None, *NAMES], sampling=Sampling(max_new_tokens=4, temperature=0))
    assert texts == {name: reply.text for name, reply in zip(listed, wanted, strict=True)}


def test_packs_share_a_budget_and_come_and_go(weave: Path) -> None:
    whole = Weave.from_pretrained(weave, unpacked_packs=None)
    largest = max(whole.packed_model.pack_bytes(name) for name in NAMES)
    settings = ServeConfig(pack_memory=int(2.3 * largest), pin=("one",), allow_pack_management=True)
    with client_of(open_service(str(weave), settings), settings) as client:

        def status() -> dict[str, dict[str, Any]]:
            return {pack["name"]: pack for pack in client.get("/v1/packs").json()["data"]}

        assert [pack["level"] for pack in status().values()] == ["memory", "disk", "disk"]
        for name in ("two", "three", "two", "one"):
            assert ask(client, name).status_code == 200
        now = status()
        assert (now["one"]["pinned"], now["one"]["level"], now["one"]["evictions"]) == (True, "memory", 0)
        assert now["two"]["loads"] == 2
        assert now["three"]["level"] == "disk"
        # Both were used by the last steps.
        assert [now[name]["bytes"] for name in ("one", "two")] == [
            whole.packed_model.pack_bytes(name) for name in ("one", "two")
        ]
        assert client.post("/v1/packs", json={"folder": str(weave.parent / "four")}).json()["name"] == "four"
        assert ask(client, "four").status_code == 200
        assert client.delete("/v1/packs/four").status_code == 200
        assert ask(client, "four").status_code == 404
        assert client.delete("/v1/packs/two").status_code == 409  # it is a part of the weave
        assert "skillweave_pack_evictions_total" in client.get("/metrics").text


def test_the_budget_has_room_for_what_steps_of_the_engine_keep(weave: Path) -> None:
    """Where the compiled functions run, that is more than the pack takes when it is loaded."""
    read = Weave.from_pretrained(weave, packs=(), unpacked_packs=None).shelf.read("one").ready
    assert (read.most_nbytes > read.nbytes) == (compiled() is not None)

    async def between_steps(function: Any) -> Any:
        return function()

    async def used_bytes(budget: int) -> int:
        packs = PackMemory(Weave.from_pretrained(weave, packs=(), unpacked_packs=None), between_steps, budget)
        async with packs.use("one"):
            return packs.used_bytes

    assert asyncio.run(used_bytes(read.most_nbytes)) == read.most_nbytes
    with pytest.raises(UserError, match="give a larger budget"):
        asyncio.run(used_bytes(read.most_nbytes - 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ServeConfig(pin=("on",)), "did you mean 'one'"),
        (ServeConfig(pack_memory=5), "has room for no pack"),
    ],
)
def test_what_cannot_be_kept_in_memory_is_told(weave: Path, settings: ServeConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_service(str(weave), settings)


def test_pinned_packs_without_room_end_the_server(weave: Path) -> None:
    settings = ServeConfig(pack_memory=int(1.2 * max(sizes(weave))), pin=NAMES)
    app = create_app(open_service(str(weave), settings), settings, KEY, write_log=lambda _: None)
    with TestClient(app) as client:
        _settled(client)
        assert client.get("/ready").status_code == 503
        assert "budget" in str(app.state.admission.failure)


def test_a_pack_that_is_larger_than_the_memory_for_packs_is_named(
    weave: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr("skillweave.serve.open_service.say_once", said.append)
    copy = Path(shutil.copytree(weave, tmp_path / "weave"))
    with data_file(copy, "two").open("ab") as file:
        file.truncate(10**6)
    open_service(str(copy), ServeConfig(pack_memory=10**5))
    assert said == [
        "1 of 3 packs (33%) cannot be used, because each takes more than the --pack-memory of 100.0 kB: two"
    ]


def data_file(weave: Path, name: str) -> Path:
    return next((weave / "packs" / name).glob("*.safetensors"))


def sizes(weave: Path) -> list[int]:
    """The bytes of the numbers of each pack."""
    return [data_file(weave, name).stat().st_size for name in NAMES]


def test_a_pack_is_served_under_its_name(weave: Path, micro_base: Path) -> None:
    settings = ServeConfig()
    service = open_service(str(weave.parent / "four"), settings, base=str(micro_base))
    assert (service.default, [model.id for model in service.models()]) == ("four", ["base", "four"])
    with client_of(service, settings) as client:
        assert ask(client, "four").status_code == 200


def test_a_pack_that_does_not_fit_is_refused(weave: Path, micro_base: Path) -> None:
    with pytest.raises(UserError, match="more than the pack_memory"):
        open_service(str(weave.parent / "four"), ServeConfig(pack_memory=10), base=str(micro_base))


def test_a_damaged_pack_is_the_servers_fault_and_is_tried_again(weave: Path) -> None:
    settings = ServeConfig(pack_memory=10**9)
    file = next((weave / "packs" / "two").glob("*.safetensors"))
    whole = file.read_bytes()
    with client_of(open_service(str(weave), settings), settings) as client:
        try:
            file.write_bytes(whole[: len(whole) // 2])
            refused = ask(client, "two")
        finally:
            file.write_bytes(whole)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "pack_not_loaded")
        assert str(weave) not in refused.text
        assert ask(client, "two").status_code == 200
