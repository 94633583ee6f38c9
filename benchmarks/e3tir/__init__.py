"""E3-TIR beside supervised training, RL and their mixtures at equal budgets."""
