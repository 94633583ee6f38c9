"""Tune the factors of a pack against the outputs of the full specialist, with the rounding in the loop."""
