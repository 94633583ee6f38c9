"""Measurements: one module or package a claim, run as ``python -m benchmarks.NAME``."""
