"""What every method's training shares: settings, batch order, processes, and a quiet, resumable TRL trainer."""

from skillweave.methods.training.order import batch_order
from skillweave.methods.training.processes import Processes
from skillweave.methods.training.settings import TrainingSettings

__all__ = ["Processes", "TrainingSettings", "batch_order"]
