"""The engine ``vllm``: a weave is exported as a base and adapters, and vLLM servers answer with them."""

from typing import TYPE_CHECKING

from skillweave.lazy import lazily

if TYPE_CHECKING:
    from skillweave.engine.vllm.export import export_vllm
    from skillweave.engine.vllm.folder import VllmFolder
    from skillweave.engine.vllm.servers import VllmServer
    from skillweave.engine.vllm.vllm_engine import VllmEngine

__getattr__ = lazily(
    __name__,
    {"export": "export_vllm", "folder": "VllmFolder", "servers": "VllmServer", "vllm_engine": "VllmEngine"},
)

__all__ = ["VllmEngine", "VllmFolder", "VllmServer", "export_vllm"]
