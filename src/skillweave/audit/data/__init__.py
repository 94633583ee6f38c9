"""The audit of RLVR data before training: each record gets signals, a score and the marked places in its prompt."""

from skillweave.audit.data.config import DataAuditConfig
from skillweave.audit.data.job import DataAudit, audit_data, score_records

__all__ = ["DataAudit", "DataAuditConfig", "audit_data", "score_records"]
