"""Reason at test time: find the rule behind a few examples, as a program (MATSIR and its baselines)."""

from skillweave.reason.config import ReasonConfig
from skillweave.reason.job import ReasonResult, reason
from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem

__all__ = ["ExamplePairs", "HeldOut", "IOPair", "Problem", "ReasonConfig", "ReasonResult", "reason"]
