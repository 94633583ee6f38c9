"""Benchmarks of the audit, on sealed model organisms that are grown here."""
