"""The audit of a checkpoint, a delta or a pack against its base: behaviour, probes, spectra, and a verdict."""
