"""The routes that OpenAI clients speak: models, chat completions, completions and responses."""
