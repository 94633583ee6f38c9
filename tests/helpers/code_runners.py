"""The runners that the tests of the verifier ``code`` can use on this system."""

from __future__ import annotations

import pytest

from skillweave.errors import UserError
from skillweave.tools import process_runner


def offers_walls() -> bool:
    """Whether this system can confine a process."""
    try:
        return process_runner.run("1").ok
    except UserError:
        return False


needs_walls = pytest.mark.skipif(not offers_walls(), reason="this system cannot confine a process")
RUNNERS = ["interpreter", pytest.param("process", marks=needs_walls)]
