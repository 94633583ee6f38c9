"""The management of packs over HTTP: list them, add and remove them, keep them in memory. It always needs the key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from skillweave.errors import UserError, nearest
from skillweave.serve.engine_service import EngineService
from skillweave.serve.errors import ApiError


class PackToAdd(BaseModel):
    """The body of a request that adds a pack: its folder on the server's disk, or its hub id (``owner/name``)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folder: str = Field(min_length=1, max_length=4096)


def pack_router(service: EngineService) -> APIRouter:
    """Return the routes below ``/v1/packs``."""
    router = APIRouter(prefix="/v1/packs")
    memory = service.memory

    @router.get("")
    async def list_packs() -> dict[str, Any]:
        """List the packs with where they are, their bytes and their counts."""
        return {"object": "list", "data": [asdict(one) for one in memory.status()]}

    @router.post("", status_code=201)
    async def add_pack(wanted: PackToAdd) -> dict[str, Any]:
        """Add a pack from the server's disk or from the hub; it is read and checked against the base first."""
        return _one(service, await memory.add(wanted.folder))

    @router.delete("/{name}")
    async def remove_pack(name: str) -> dict[str, Any]:
        """Remove a pack from the server; its folder stays."""
        _one(service, name)
        try:
            await service.remove_pack(name)
        except UserError as error:
            raise ApiError(409, str(error), code="pack_not_removed") from None
        return {"object": "pack", "name": name, "deleted": True}

    @router.post("/{name}/{action}")
    async def change_pack(name: str, action: Literal["load", "pin", "unpin"]) -> dict[str, Any]:
        """Load a pack now, so that its next request does not wait; or keep it in memory, or no longer."""
        _one(service, name)
        try:
            if action == "load":
                async with memory.use(name):
                    pass
            elif action == "pin":
                await memory.pin(name)
            else:
                memory.unpin(name)
        except UserError as error:
            raise ApiError(409, str(error), code="pack_not_loaded") from None
        return _one(service, name)

    return router


def _one(service: EngineService, name: str) -> dict[str, Any]:
    for one in service.memory.status():
        if one.name == name:
            return {"object": "pack", **asdict(one)}
    raise ApiError(404, f"there is no pack {name!a:.200}; {nearest(name, service.packs())}", code="pack_not_found")
