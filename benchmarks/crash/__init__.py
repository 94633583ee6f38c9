"""Saves that are cut off at every call, or fail with every error."""
