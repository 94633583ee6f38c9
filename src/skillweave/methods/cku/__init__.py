"""CKU, constrained knowledge unlearning: take knowledge out while the neurons that hold the rest stay frozen."""

from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.cku.run import run

__all__ = ["CkuConfig", "run"]
