"""A mkdocs hook: pages may link to some files outside of `docs/`, so that the site needs no copies of them.

A page links a plot as `../../benchmarks/results/NAME.svg` or an example as `../../examples/NAME.yaml`. Such a link also
works in a plain view of the repository. The site has no folder above `docs/`, so the hook adds these files to the site
under the same path and makes the link one folder shorter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PATTERNS = (
    "benchmarks/results/*.svg",
    *(f"examples/**/*.{kind}" for kind in ("yaml", "py", "json", "jsonl", "service")),
    "src/skillweave/demo/weave.yaml",
)
_LINK = re.compile(r"\]\(\.\./((?:\.\./)*(?:benchmarks/results|examples|src/skillweave/demo)/[\w./-]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files to the site."""
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Shorten the links to these files: the site has one folder less to climb."""
    return _LINK.sub(r"](\1)", markdown)
