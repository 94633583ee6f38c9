"""Open a weave, a pack, a delta or a plain model by name, and let it answer in this process."""

from skillweave.engine.local import LocalEngine, open_engine

__all__ = ["LocalEngine", "open_engine"]
