"""README and docs: short where they must be, and every link leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from nofe_lab import views
from nofe_lab.study.comparisons import CANDIDATES, FIRST_RUN, K

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md")
    if path.name != "CHANGELOG.md"
)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def prose(text: str) -> list[str]:
    """Paragraphs, each with its lines joined by newlines, without code and generated parts."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"<!-- table .*?<!-- end -->", "", text, flags=re.DOTALL)
    return [
        part for part in text.split("\n\n") if part.strip() and not part.lstrip().startswith("|")
    ]


def anchors(path: Path) -> set[str]:
    """What a link can lead to in a page, as GitHub names its headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


def test_the_readme_shows_what_to_type_within_a_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("make run") for line in lines[:40])
    assert any("film.gif" in line for line in lines[:8])


def test_make_run_has_the_recipe_that_was_chosen_wherever_it_is_told() -> None:
    chosen = {"K": K, **CANDIDATES[FIRST_RUN]}
    told = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nFIRST := ")[2]
    words = told.partition("\n")[0]
    given = dict(re.findall(r"-p (\w+) (\S+)", words))
    assert given == {name: str(value) for name, value in chosen.items()}
    assert f"out.ipynb {words}\n" in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def test_no_paragraph_of_the_readme_is_longer_than_four_lines() -> None:
    for part in prose((ROOT / "README.md").read_text(encoding="utf-8")):
        assert len(part.splitlines()) <= 4, part


def test_no_result_is_typed_into_the_readme_by_hand() -> None:
    for part in prose((ROOT / "README.md").read_text(encoding="utf-8")):
        assert not re.search(r"\d ?%|\d\.\d+ points|[+-]\d\.\d|\d T\b", part), part


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for found in LINK.findall(text):
        target = "".join(found)
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def test_the_gallery_has_a_small_picture_of_every_widget() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = [part for part in page.split("**`")[1:] if "](../data/figures/widget_" in part]
    assert len(shown) == page.count("**`")
    for widget in (name for name in views.__all__ if name[0].isupper()):
        assert any(part.startswith(f"{widget}`") for part in shown), widget
    pictures = [path for path in LINK.findall(page) if path[0].endswith(".png")]
    assert len(pictures) == len(shown)
    for path, _ in pictures:
        assert (ROOT / "docs" / path).stat().st_size <= 150_000, path


def test_licence_and_version_are_the_same_wherever_they_are_said() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["license"] == citation["license"] == "MIT"
    assert project["version"] == citation["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License")
    assert "the nofe_lab authors" in licence
