"""MATSIR against direct answers, best of N, iterative refinement and REx, at equal calls and tokens."""
