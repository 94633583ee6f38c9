"""The neurons of the MLPs: what they are, how much each matters, and which ones stay frozen."""
