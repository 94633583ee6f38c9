"""The management of packs over HTTP: list them, add and remove them, keep them in memory. It always needs the key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from skillweave.errors import UserError
from skillweave.serve.local_service import LocalService
from skillweave.serve.refusal import error_body


class PackToAdd(BaseModel):
    """The body of a request that adds a pack: its name, and its folder on the server's disk."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=200)
    folder: str = Field(min_length=1, max_length=4096)


def pack_router(service: LocalService) -> APIRouter:
    """Return the routes below ``/v1/packs``."""
    router = APIRouter(prefix="/v1/packs")
    memory = service.memory

    @router.get("")
    async def list_packs() -> dict[str, Any]:
        """List the packs with where they are, their bytes and their counts."""
        return {"object": "list", "data": [asdict(one) for one in memory.status()]}

    @router.post("", status_code=201)
    async def add_pack(wanted: PackToAdd) -> Any:
        """Add a pack from a folder on the server's disk; it is read and checked against the base first."""
        try:
            await memory.add(wanted.name, wanted.folder)
        except UserError as error:
            return _refused(error, 400, "pack_not_added")
        return _one(service, wanted.name)

    @router.delete("/{name}")
    async def remove_pack(name: str) -> Any:
        """Remove a pack from the server; its folder stays."""
        if (unknown := _unknown(service, name)) is not None:
            return unknown
        try:
            await memory.remove(name)
        except UserError as error:  # it is in use
            return _refused(error, 409, "pack_in_use")
        service.metrics.forget(name)
        return {"object": "pack", "name": name, "deleted": True}

    @router.post("/{name}/load")
    async def load_pack(name: str) -> Any:
        """Load a pack into memory now, so that its next request does not wait."""
        if (unknown := _unknown(service, name)) is not None:
            return unknown
        try:
            async with memory.use(name):
                return _one(service, name)
        except UserError as error:
            return _refused(error, 409, "pack_not_loaded")

    @router.post("/{name}/{action}")
    async def pin_pack(name: str, action: str) -> Any:
        """Keep a pack in memory (`pin`), or no longer (`unpin`)."""
        if action not in ("pin", "unpin"):
            return _refused(UserError(f"unknown action {action!a:.60}: use load, pin or unpin"), 404, "not_found")
        if (unknown := _unknown(service, name)) is not None:
            return unknown
        try:
            await memory.pin(name, action == "pin")
        except UserError as error:
            return _refused(error, 409, "pack_not_pinned")
        return _one(service, name)

    return router


def _one(service: LocalService, name: str) -> dict[str, Any]:
    return {"object": "pack", **next(asdict(one) for one in service.memory.status() if one.name == name)}


def _unknown(service: LocalService, name: str) -> JSONResponse | None:
    if name in {one.name for one in service.memory.status()}:
        return None
    return _refused(UserError(f"there is no pack {name!a:.200}"), 404, "pack_not_found")


def _refused(error: UserError, status: int, code: str) -> JSONResponse:
    return JSONResponse(error_body(str(error), code), status)
