"""What the tool loop knows of a model's control tokens; it all stands in :mod:`skillweave.base.ends`."""

from skillweave.base.ends import control_tokens, turn_end

__all__ = ["control_tokens", "turn_end"]
