"""The neurons of the MLPs: where they are, how much each one matters, and which ones stay frozen."""
