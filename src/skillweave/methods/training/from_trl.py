"""The names we take from TRL, imported so that a folder called ``weave`` does not break it.

TRL 1.16 looks whether a package ``weave`` (a tracing library) can be found, and imports from it if so. Any *folder*
``weave`` on the import path answers to that name, and a woven model is naturally saved in one: `python -m ...` or a
notebook beside it would then fail to import TRL at all. A folder without ``__init__.py`` is not that library.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_found = importlib.util.find_spec("weave")
if _found is not None and _found.origin is None:
    _checks: Any = importlib.import_module("trl.import_utils")
    _checks.is_weave_available = lambda: False

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head  # noqa: E402

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "FusedCausalLMOutput",
    "GRPOConfig",
    "GRPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "add_fused_lm_head",
]
