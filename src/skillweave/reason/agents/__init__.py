"""The agents: proposer, refiner, critic, coder and judge. Each is a prompt template and a reader of its answers."""
