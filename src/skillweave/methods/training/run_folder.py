"""Claims the folder of a run, and checks that what is in it belongs to the same run.

``config.json`` in the folder holds the method, the base with what its config says, the digest of the data, the
settings and the versions of the libraries. A run that finds another one there is refused.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import ValidationError

from skillweave.artefact import write_json
from skillweave.base import Base
from skillweave.base.precision import native_bf16
from skillweave.delta.config_values import other_than_recorded, recorded_values
from skillweave.errors import UserError
from skillweave.files.disk import check_room
from skillweave.files.lock import Claim, take
from skillweave.files.place import place_of
from skillweave.files.read import read_object
from skillweave.files.recover import recover, sweep
from skillweave.methods.training.settings import ModelSettings
from skillweave.progress import say_once

C = TypeVar("C", bound=ModelSettings)


class Data(Protocol):
    """What a run learns from: a task, or another named content. ``key`` is a digest of everything in it."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...


def claim_folder(method: str, folder: Path, base: Base, config: ModelSettings, data: Data) -> Claim:
    """Claim the folder for this process and write ``config.json``; the caller releases the claim.

    Raises :class:`UserError` if another process has the folder, if it holds another run, or if it holds something that
    is not a run.
    """
    claim = take(place_of(folder))
    try:
        recover(claim)
        sweep(folder)
        _write_settings(method, folder, base, config, data)
    except BaseException:
        claim.release()
        raise
    return claim


def decide_bf16(config: C, folder: Path, device: torch.device) -> C:
    """The settings with ``bf16: auto`` replaced by a bool: that of the run in the folder, else what the device does."""
    if config.bf16 != "auto":
        return config
    path = folder / "config.json"
    earlier = _stored_run(path)["config"].get("bf16") if path.exists() else None
    native, reason = native_bf16(device)
    chosen = earlier if isinstance(earlier, bool) else native
    because = reason if chosen == native else "as the run in this folder began"
    say_once(f"training computes in {'bfloat16' if chosen else 'float32'} ({because})")
    return config.model_copy(update={"bf16": chosen})


def _write_settings(method: str, folder: Path, base: Base, config: ModelSettings, data: Data) -> None:
    settings = config.model_dump(mode="json")
    identity = {
        "method": method,
        "base": {
            "ref": base.ref,
            "fingerprint": base.fingerprint,
            "config": recorded_values(base.model.config),
        },
        "task": data.key,
        "config": settings,
    }
    path = folder / "config.json"
    if path.exists():
        stored = _stored_run(path)
        if _has_begun(folder):
            _check_same_run(folder, stored, identity, config, base.model.config)
            if stored["config"] == settings:
                return
    elif config.train == "full":
        model_bytes = 4 * sum(parameter.numel() for parameter in base.model.parameters())
        check_room(folder, model_bytes, "the trained model in float32")
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    write_json(path, {**identity, "versions": versions})


def _stored_run(path: Path) -> dict[str, Any]:
    """What the config.json of a run holds. Raises :class:`UserError` if the file is damaged, or of something else."""
    fix = f"It belongs to no run, or is damaged: choose another folder, or delete {path.parent} to start again"
    stored = read_object(path, {"method": str, "base": dict, "config": dict, "task": str}, fix)
    if not all(isinstance(stored["base"].get(key), str) for key in ("ref", "fingerprint")):
        raise UserError(f"{path}: 'base' lacks the name or the fingerprint of a base. {fix}")
    return stored


def _has_begun(folder: Path) -> bool:
    """Whether the folder holds more than the settings. If a run failed at once, other settings may replace its own."""
    return any(path.name != "config.json" and not path.name.startswith(".") for path in folder.iterdir())


def _check_same_run(
    folder: Path, stored: dict[str, Any], ours: dict[str, Any], config: ModelSettings, base_config: Any
) -> None:
    """Raise :class:`UserError` unless the run in the folder is this one.

    The settings in ``may_change`` may differ as long as the run is unfinished.
    """
    if stored["base"]["fingerprint"] != ours["base"]["fingerprint"]:
        raise UserError(f"{folder} holds a run on another base ({stored['base']['ref']}): choose another folder")
    # A run of an earlier version did not record it.
    if (other := other_than_recorded(stored["base"].get("config", {}), base_config)) is not None:
        raise UserError(
            f"{folder} holds a run on a base with these weights and another config: {other}. Choose another folder, or "
            f"open the base as it was then ({stored['base']['ref']})"
        )
    if stored["method"] == ours["method"]:
        may_change = ModelSettings.may_change if (folder / "delta").is_dir() else config.may_change
        different = [key for key in _different_settings(folder, stored["config"], config) if key not in may_change]
    else:
        different = [f"the method {stored['method']}"]
    if stored["task"] != ours["task"]:
        different.append("other examples in the task")
    if different:
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(different)}): choose another folder, or delete this "
            "one to start again"
        )


def _different_settings(folder: Path, stored: dict[str, Any], config: ModelSettings) -> list[str]:
    """The names of the settings that differ from those in a run's ``config.json``.

    The stored settings are read through the config class, so a setting that has moved since is found in its old place,
    and one that did not exist yet has its default. Raises :class:`UserError` if they cannot be read.
    """
    # Some validators refuse a setting that was given and has no effect, so the defaults must count as not given.
    defaults = type(config).model_construct().model_dump(mode="json", warnings=False)
    try:
        earlier = type(config).model_validate(_without_defaults(stored, defaults))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{folder} holds a run whose settings this version cannot read "
            f"({'.'.join(map(str, first['loc'])) or 'config'}: {first['msg']}): choose another folder, or delete this "
            "one to start again"
        ) from error
    if earlier.bf16 == "auto":  # the run is older than this setting, and nothing tells what it computed in
        earlier = earlier.model_copy(update={"bf16": config.bf16})
    before, now = earlier.model_dump(mode="json"), config.model_dump(mode="json")
    return [key for key in now if now[key] != before[key]]


def _without_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults, also in nested settings."""
    given = {}
    for key, value in settings.items():
        default = defaults.get(key)
        if key in defaults and value == default:
            continue
        if isinstance(value, dict) and isinstance(default, dict):
            value = _without_defaults(value, default)
        given[key] = value
    return given
