"""Engines generate tokens. The local engine opens a weave, a pack, a delta or a plain model in this process."""

from skillweave.engine.local import LocalEngine, open_engine

__all__ = ["LocalEngine", "open_engine"]
