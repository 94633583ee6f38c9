"""Methods: each makes a delta on a base model, and nothing downstream needs to know which one did."""

from skillweave.methods.registry import METHODS, Method, get_method

__all__ = ["METHODS", "Method", "get_method"]
