"""Reason at test time: find the rule behind a few examples, as a program (MATSIR and its baselines)."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.reason.config import ReasonConfig
    from skillweave.reason.job import ReasonResult, reason
    from skillweave.reason.problem import ExamplePairs, HeldOut, IOPair, Problem
    from skillweave.reason.readers import load_problems

__getattr__ = lazily(
    __name__,
    {
        "config": "ReasonConfig",
        "job": "ReasonResult reason",
        "problem": "ExamplePairs HeldOut IOPair Problem",
        "readers": "load_problems",
    },
)

__all__ = [
    "ExamplePairs",
    "HeldOut",
    "IOPair",
    "Problem",
    "ReasonConfig",
    "ReasonResult",
    "load_problems",
    "reason",
]
