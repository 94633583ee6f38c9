"""Write the data of examples/induction/weave.yaml: training rows, test problems and practice problems.

    python examples/induction/make_rows.py                      writes runs/induction_data
    python examples/induction/make_rows.py FOLDER seed=1 rows=800    another folder, other settings
"""

import sys

from skillweave.config import read_config
from skillweave.errors import UserError
from skillweave.reason.induction import InductionConfig, write_induction

ROWS = 2600
"""Training rows: 2,400 are trained on once."""
FAMILIES = {
    "lists": {"train": [1, 3], "test": [2, 3], "pairs": [5, 5]},
    "commands": {"train": [3, 5], "test": [4, 6], "pairs": [6, 7]},
}
"""Shorter problems than by default, because the model sees few of them."""


def main(folder: str = "runs/induction_data", *overrides: str) -> None:
    """Write the folder and say what it holds."""
    settings = read_config(InductionConfig, {"rows": ROWS, "families": FAMILIES}, list(overrides))
    facts = write_induction(folder, settings)
    print(f"{folder}: " + ", ".join(f"{count:,} lines in {name}" for name, count in facts["counts"].items()))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"Error: {error}")
