"""The audit of RL with verifiable rewards: find poisoned records, suspicious rollouts and backdoored checkpoints."""
