"""The server under load: many packs at once, beside the other ways to serve several fine-tunes of one model."""
