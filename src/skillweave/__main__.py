"""``python -m skillweave`` runs the command line; so does ``torchrun -m skillweave``."""

from skillweave.cli import main

main()
