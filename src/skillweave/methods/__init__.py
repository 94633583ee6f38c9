"""The methods: each makes a delta on a base model, and the rest of the package treats all deltas alike."""

from skillweave.methods.registry import METHODS, Method, get_method

__all__ = ["METHODS", "Method", "get_method"]
