"""Micro models: Llamas of up to a few million parameters, trained from scratch in seconds on one CPU core.

Only tests and benchmarks import this package.
"""

from skillweave.micro.model import MicroShape, micro_model
from skillweave.micro.tokenizer import micro_tokenizer
from skillweave.micro.train import micro_base

__all__ = ["MicroShape", "micro_base", "micro_model", "micro_tokenizer"]
