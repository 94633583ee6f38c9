"""``python -m skillweave``: the command line, for ``torchrun -m`` too."""

from skillweave.cli import main

main()
