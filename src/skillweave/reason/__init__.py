"""Reason at test time: find the rule behind a few examples, as a program (MATSIR and its baselines)."""
