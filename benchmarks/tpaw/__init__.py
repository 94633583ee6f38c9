"""Team self-play beside SPIN, DPO and supervised training."""
