"""The app with all its commands: each module adds its commands when it is imported."""

from skillweave.cli import audit, audit_rollouts, build, cku, export, methods, models, packs, reason, tasks  # noqa: F401
from skillweave.cli import audit, audit_models, build, cku, export, methods, models, packs, reason, tasks  # noqa: F401
from skillweave.cli.app import app

__all__ = ["app"]
