"""The sealed model organism: a small synthetic language in which the weakness can be studied without harm."""
