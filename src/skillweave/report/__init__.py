"""Figures for people: tables, plots and reports."""

from skillweave.report.build_report import short_skill_table, skill_table, write_build_report
from skillweave.report.machine import machine, versions
from skillweave.report.neurons_plot import neurons_plot
from skillweave.report.plots import svg_text
from skillweave.report.table import Table
from skillweave.report.unlearn_report import short_probe_table, short_unlearn_table, write_unlearn_report
from skillweave.units import human_bytes, human_seconds

__all__ = [
    "Table",
    "human_bytes",
    "human_seconds",
    "machine",
    "neurons_plot",
    "short_probe_table",
    "short_skill_table",
    "short_unlearn_table",
    "skill_table",
    "svg_text",
    "versions",
    "write_build_report",
    "write_unlearn_report",
]
