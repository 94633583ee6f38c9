"""Repair after an audit: leave out flagged records and train again."""
"""Ways to take a backdoor out of a model that the audit found."""
