"""Engines generate tokens with a weave, a pack, a delta or a plain model in this process.

The local engine answers one caller. The asynchronous engine answers many, in shared batches.
"""

from skillweave.engine.async_engine import AsyncEngine, EngineCounters
from skillweave.engine.generation import CountedReply, Generation, RequestCancelled
from skillweave.engine.local import LocalEngine, open_engine

__all__ = [
    "AsyncEngine",
    "CountedReply",
    "EngineCounters",
    "Generation",
    "LocalEngine",
    "RequestCancelled",
    "open_engine",
]
