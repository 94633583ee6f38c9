"""Tables, plots and pages: a toolbox for reports that depends on no method."""

from skillweave.report.machine import machine, versions
from skillweave.report.plots import svg_text
from skillweave.report.table import Table

__all__ = ["Table", "machine", "svg_text", "versions"]
