"""CKU, constrained knowledge unlearning: remove knowledge while the neurons that hold the rest stay frozen."""

from skillweave.methods.cku.config import CkuConfig

__all__ = ["CkuConfig"]
