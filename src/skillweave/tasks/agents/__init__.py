"""Tasks that are solved with tools: three generated families, a user's own rows, and what experts did on them.

Nothing is imported here: the families are builtin tasks, so :mod:`skillweave.tasks.builtin` reads their files, and
:mod:`skillweave.tasks.agents.load` reads that again.
"""
