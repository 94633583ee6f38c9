"""Methods: each makes a delta on a base model, and nothing downstream needs to know which one did."""

from skillweave.methods.cku import CkuConfig
from skillweave.methods.e3tir import E3tirConfig
from skillweave.methods.registry import METHODS, Method, get_method, register
from skillweave.methods.specialise import SpecialiseConfig
from skillweave.methods.tpaw import TpawConfig

__all__ = ["METHODS", "CkuConfig", "E3tirConfig", "Method", "SpecialiseConfig", "TpawConfig", "get_method", "register"]
