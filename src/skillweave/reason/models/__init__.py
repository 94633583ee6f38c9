"""Models that answer the agents' prompts: any OpenAI-compatible server, or the local engine in this process."""
