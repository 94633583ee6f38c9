"""Ways to take a backdoor out of a model that the audit found."""
