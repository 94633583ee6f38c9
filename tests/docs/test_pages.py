"""The pages: links lead somewhere, no page is forgotten, plots have one source, settings files are valid."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

from skillweave.config import Config, read_config
from skillweave.methods.cku.config import CkuConfig
from skillweave.methods.cku.report.config import ReportConfig
from skillweave.methods.e3tir.config import E3tirConfig
from skillweave.methods.specialise.config import SpecialiseConfig
from skillweave.methods.tpaw.config import TpawConfig
from skillweave.pipeline.config import WeaveConfig
from skillweave.tasks.spec import FileSpec
from skillweave.tasks.with_tools import ToolUse

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_out_of_the_docs_are_on_the_site(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``make docs`` fails for a link that its hook does not know. mkdocs itself is not installed with the tests."""
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    hook = runpy.run_path(str(DOCS / ".site" / "repository.py"))
    known = {path for pattern in hook["PATTERNS"] for path in ROOT.glob(pattern)}
    for target in _LINK.findall(_prose(page)):
        file = (page.parent / target.partition("#")[0]).resolve()
        if not re.match(r"[a-z]+:|#", target) and not file.is_relative_to(DOCS):
            assert file in known, f"{target}: add a pattern to docs/.site/repository.py"
            assert hook["on_page_markdown"](f"[x]({target})") == f"[x]({target[3:]})", target


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
    for name in re.findall(r"python -m (benchmarks(?:\.[a-z]\w*)+)", page.read_text(encoding="utf-8")):
        module = ROOT / name.replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()


def test_the_count_of_crashes_is_that_of_the_benchmark() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "crash-micro.json").read_text(encoding="utf-8"))
    points = next(claim["value"] for claim in measured["claims"] if claim["claim"] == "saves cut off")
    for page in (ROOT / "README.md", DOCS / "reference" / "crashes.md"):
        assert f"{points:,} " in page.read_text(encoding="utf-8"), page.name


_YAML = re.compile(r"^```yaml\n# ([\w-]+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CONFIGS: dict[str, type[Config]] = {
    "weave.yaml": WeaveConfig,
    "teach.yaml": SpecialiseConfig,
    "selfplay.yaml": TpawConfig,
    "warmup.yaml": E3tirConfig,
    "shop.yaml": E3tirConfig,
    "shop-tools.yaml": ToolUse,
    "forget.yaml": CkuConfig,
    "judge.yaml": ReportConfig,
    "task.yaml": FileSpec,
}
_FILES = [(page.name, name, text) for page in PAGES for name, text in _YAML.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "name", "text"), _FILES, ids=[f"{page}:{name}" for page, name, _ in _FILES])
def test_settings_files_on_the_pages_are_valid(page: str, name: str, text: str) -> None:
    values = yaml.safe_load(text)
    config = _CONFIGS[name]
    # A run's file also names the base and the output, which are not settings of the method.
    if not {"base", "out"} & set(config.model_fields):
        values = {key: value for key, value in values.items() if key not in ("base", "out")}
    read_config(config, values)


def test_every_kind_of_settings_file_is_on_some_page() -> None:
    assert {name for _, name, _ in _FILES} == set(_CONFIGS)
