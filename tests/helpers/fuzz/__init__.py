"""The fuzzing: mutations of files, the kinds of files that are mutated, and what is right afterwards."""
