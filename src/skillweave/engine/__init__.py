"""What generates tokens: the local engine, for a weave, a pack, a delta or a plain model alike."""

from skillweave.engine.local import LocalEngine, open_engine

__all__ = ["LocalEngine", "open_engine"]
