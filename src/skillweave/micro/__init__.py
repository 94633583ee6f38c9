"""Micro models: Llamas of up to a few million parameters, made and trained in code in seconds on one CPU core.

What benchmarks and tests of all methods stand on. Nothing else in the house imports this room.
"""

from skillweave.micro.model import MicroShape, micro_model
from skillweave.micro.tokenizer import micro_tokenizer
from skillweave.micro.train import micro_base

__all__ = ["MicroShape", "micro_base", "micro_model", "micro_tokenizer"]
