"""The list of methods: for each a name, the class of its settings, and the module that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from skillweave.base import Base
from skillweave.delta import Delta
from skillweave.errors import UserError, nearest
from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.methods.training.settings import ModelSettings


@dataclass(frozen=True)
class Method:
    """A way to make a delta: its name, the class of its settings, and the module with its ``run`` function."""

    name: str
    config: type[ModelSettings]
    module: str

    def run(self, base: Base, config: ModelSettings, out: Path) -> Delta:
        """Make the delta, save it in ``out/"delta"`` and return it.

        A run that was cut off resumes when it is called again with the same settings and folder. The method's module is
        imported only here, because it imports TRL and PEFT, which takes seconds.
        """
        return import_module(self.module).run(base, config, out)


METHODS = {
    "specialise": Method("specialise", SpecialiseConfig, "skillweave.methods.specialise.run"),
    "e3tir": Method("e3tir", E3tirConfig, "skillweave.methods.e3tir.run"),
    "tpaw": Method("tpaw", TpawConfig, "skillweave.methods.tpaw.run"),
    "cku": Method("cku", CkuConfig, "skillweave.methods.cku.run"),
}


def get_method(name: str) -> Method:
    """Return the method of that name. Raises :class:`UserError` with the nearest name if there is none."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'; {nearest(name, METHODS)}")
    return METHODS[name]
