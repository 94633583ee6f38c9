"""Generated induction problems, and the training rows from which the skill `induction` is made."""

from skillweave.reason.induction.config import InductionConfig, InductionFamily
from skillweave.reason.induction.write import write_induction

__all__ = ["InductionConfig", "InductionFamily", "write_induction"]
