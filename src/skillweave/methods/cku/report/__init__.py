"""The report of an unlearning: what was forgotten, what was kept, and what the probes bring back."""
