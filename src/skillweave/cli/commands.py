"""The app with all its commands: each module adds its commands when it is imported."""

from skillweave.cli import (  # noqa: F401
    audit,
    audit_models,
    audit_rollouts,
    bench,
    build,
    chat,
    cku,
    export,
    methods,
    models,
    packs,
    reason,
    serve,
    tasks,
)
from skillweave.cli.app import app

__all__ = ["app"]
