"""Which runners can be tried here, for the tests of the verifier ``code``."""

from __future__ import annotations

import pytest

from skillweave.errors import UserError
from skillweave.tools import process_runner


def offers_walls() -> bool:
    """Whether this system can lock a process in."""
    try:
        return process_runner.run("1").ok
    except UserError:
        return False


needs_walls = pytest.mark.skipif(not offers_walls(), reason="this system cannot lock a process in")
RUNNERS = ["interpreter", pytest.param("process", marks=needs_walls)]
