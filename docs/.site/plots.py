"""A mkdocs hook: the site shows the plots of `benchmarks/results` where they are, and keeps no copies of them.

A page links a plot as `../../benchmarks/results/NAME.svg`, which also works in a plain view of the repository. The site
does not contain the folder `benchmarks`, so the hook adds the plots to it under the same path and shortens the link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


def on_files(files: Files, *, config: Any) -> Files:
    """Add every plot of `benchmarks/results` to the site."""
    for plot in sorted((ROOT / "benchmarks" / "results").glob("*.svg")):
        path = plot.relative_to(ROOT)
        files.append(File.generated(config, path.as_posix(), abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links to plots at the site's copy: one folder less to climb."""
    return re.sub(r"\]\(\.\./((?:\.\./)*benchmarks/results/[\w-]+\.svg\))", r"](\1", markdown)
