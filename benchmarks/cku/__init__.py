"""Unlearning: what is forgotten, what is kept, and what comes back under attack."""
