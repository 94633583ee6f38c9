"""Repair after an audit: leave out flagged records and train again."""
