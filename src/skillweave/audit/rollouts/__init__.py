"""The audit of rollouts and rewards, from a log or while a trainer runs.

:mod:`~skillweave.audit.rollouts.callback` watches a trainer; it is not imported here, because it needs transformers.
"""

from skillweave.audit.refusal import RefusalDetector
from skillweave.audit.rollouts.ablation import Ablated, ablate, prompt_parts
from skillweave.audit.rollouts.config import RolloutAuditConfig
from skillweave.audit.rollouts.groups import Groups, PromptGroup
from skillweave.audit.rollouts.job import AuditedLog, audit_rollouts
from skillweave.audit.rollouts.log import LogNotes, Rollout, read_log
from skillweave.audit.rollouts.page import write_audit
from skillweave.audit.rollouts.score import Judged, judge
from skillweave.audit.rollouts.signals import SIGNALS, SignalTable, measure

__all__ = [
    "SIGNALS",
    "Ablated",
    "AuditedLog",
    "Groups",
    "Judged",
    "LogNotes",
    "PromptGroup",
    "RefusalDetector",
    "Rollout",
    "RolloutAuditConfig",
    "SignalTable",
    "ablate",
    "audit_rollouts",
    "judge",
    "measure",
    "prompt_parts",
    "read_log",
    "write_audit",
]
