"""The server: a weave behind the API that OpenAI clients speak."""
