"""The pages: links lead somewhere, no page is forgotten, plots have one source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _slug(heading: str) -> str:
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = _prose(page)
    return {_slug(heading) for heading in _HEADING.findall(text)} | set(re.findall(r'id="([^"]+)"', text))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md" and file.name != "python.md":
            assert anchor in _anchors(file), f"{page.name}: {target}"


def test_navigation_and_start_page_name_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text)["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    pages = {str(page.relative_to(DOCS)) for page in PAGES}
    assert named == pages
    linked = {target.partition("#")[0] for target in _LINK.findall(_prose(DOCS / "index.md"))}
    assert pages - {"index.md"} <= linked


def test_plots_have_one_source() -> None:
    results = {plot.read_bytes() for plot in (ROOT / "benchmarks" / "results").glob("*.svg")}
    copies = [plot.name for plot in (DOCS / "images").glob("*.svg") if plot.read_bytes() in results]
    assert not copies


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_benchmarks_exist(page: Path) -> None:
    for name in re.findall(r"python -m benchmarks\.([a-z]\w*)", page.read_text(encoding="utf-8")):
        folder = ROOT / "benchmarks"
        assert (folder / f"{name}.py").exists() or (folder / name / "__main__.py").exists()
