"""The sealed model organism: a synthetic language in which the weakness can be studied, and nothing else can."""
