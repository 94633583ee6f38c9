"""The woven model."""
