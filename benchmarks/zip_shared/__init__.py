"""Whether a part that several deltas share pays: merged into the backbone, or as a basis that many packs use."""
