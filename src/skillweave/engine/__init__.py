"""Engines generate tokens with a weave, a pack, a delta or a plain model.

The local engine answers one caller. The asynchronous engine answers many, whose requests share the steps of the model.
"""

from skillweave.engine.async_engine import AsyncEngine
from skillweave.engine.interface import (
    AnswerToken,
    Chunk,
    CountedReply,
    Engine,
    EngineBusy,
    EngineCounters,
    Generation,
    RequestCancelled,
)
from skillweave.engine.local import LocalEngine, open_engine

__all__ = [
    "AnswerToken",
    "AsyncEngine",
    "Chunk",
    "CountedReply",
    "Engine",
    "EngineBusy",
    "EngineCounters",
    "Generation",
    "LocalEngine",
    "RequestCancelled",
    "open_engine",
]
