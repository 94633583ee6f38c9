"""The report of an unlearning: what is forgotten, what is kept, and what the probes bring back."""

from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.cku.report.run import report

__all__ = ["ReportConfig", "report"]
