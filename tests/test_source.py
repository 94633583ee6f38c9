"""Rules for the source as a whole: one class of each name, imports at the top of files, a true map of the folders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "skillweave"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

LATE_IMPORTS = {
    "cli/": "a command imports what it works with, so that --help and mistakes do not wait for torch",
    "__main__.py": "the command line starts here",
}
"""File or folder -> why its functions may import."""
LATE_PACKAGES = {
    "pydantic": "takes a tenth of a second, and `--help` opens files without it",
    "datasets": "takes a second, and only some tasks are read with it",
    "reasoning_gym": "takes seconds, and only its own tasks need it",
    "gguf": "an extra that need not be installed",
    "gradio": "an extra that need not be installed",
    "skillweave.serve.playground.page": "it imports Gradio, see there",
    "bm25s": "only the search tool needs it",
    "sklearn": "takes a second, and only the router needs it",
    "torch.utils.tensorboard": "an extra that need not be installed",
    "peft": "takes seconds, and `inspect` and a full delta do not need it",
    "skillweave.delta.peft_merge": "it imports PEFT, see there",
    "skillweave.weave.triton_kernel": "it imports Triton, which is only installed and needed with a GPU",
    "pyarrow": "takes a second, and only Parquet and Arrow files need it",
}
"""Package or module -> why any function may import it."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(SOURCE.rglob("*.py")):
        yield str(file.relative_to(SOURCE)), ast.parse(file.read_text(encoding="utf-8"))


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for name, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{name}:{node.lineno}")
    twice = [f"{name}: {', '.join(files)}" for name, files in sorted(places.items()) if len(files) > 1]
    assert not twice, "classes with one name; give each the name of what it is:\n  " + "\n  ".join(twice)


def test_imports_stand_at_the_top_of_a_file() -> None:
    late = []
    for name, tree in modules():
        if not name.startswith(tuple(LATE_IMPORTS)):
            late += [f"{name}:{line}: {what}" for line, what in sorted(imports_inside_functions(tree))]
    assert not late, (
        f"{len(late)} imports inside functions: move each to the top of its file, or add its place with the reason to "
        "the lists in this test:\n  " + "\n  ".join(late)
    )


def imports_inside_functions(tree: ast.Module) -> set[tuple[int, str]]:
    """(line, module) of the imports inside functions, less those of packages that may be imported late."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = set()
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.ImportFrom):
            found.add((node.lineno, "." * node.level + (node.module or "")))
        elif isinstance(node, ast.Import):
            found |= {(node.lineno, alias.name) for alias in node.names}
    late = tuple(f"{package}." for package in LATE_PACKAGES)
    return {(line, module) for line, module in found if not f"{module}.".startswith(late)}


def folders() -> set[str]:
    """Every package of the source, as a path below ``src/skillweave``."""
    return {str(file.parent.relative_to(SOURCE)) for file in SOURCE.rglob("__init__.py")} - {"."}


def folders_of_the_tree() -> set[str]:
    """The folders that the tree in CONTRIBUTING.md shows: two spaces of indentation for each level."""
    tree = CONTRIBUTING.partition("src/skillweave/\n")[2].partition("```")[0]
    found, above = set(), []
    for line in tree.splitlines():
        if match := re.match(r"((?:  )+)(\w+)/(?: |$)", line):
            depth = len(match[1]) // 2
            above[depth - 1 :] = [match[2]]
            found.add("/".join(above))
    return found


def test_the_tree_in_contributing_shows_every_folder() -> None:
    missing, gone = folders() - folders_of_the_tree(), folders_of_the_tree() - folders()
    assert not missing, f"CONTRIBUTING.md, the tree: add a line for {sorted(missing)}"
    assert not gone, f"CONTRIBUTING.md, the tree: remove {sorted(gone)}, which does not exist"


def test_the_tree_in_the_readme_shows_every_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("src/skillweave/\n")[2].partition("```")[0]
    shown = set(re.findall(r"^    [├└]── (\w+)/ ", tree, re.MULTILINE))
    assert shown == {folder for folder in folders() if "/" not in folder}


def test_the_arrows_in_contributing_are_what_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    text = " ".join(CONTRIBUTING.split())
    for contract in contracts:
        if contract["type"] == "layers":
            arrows = " -> ".join(contract["layers"])
            assert arrows in text, f"CONTRIBUTING.md: the contract '{contract['name']}' is missing: {arrows}"
