"""MATSIR against its baselines, at equal calls and equal tokens."""
