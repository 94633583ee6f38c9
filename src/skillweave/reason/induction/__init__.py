"""Generated induction problems, and the training rows from which the skill `induction` is made."""
