"""The pages of docs/ point at what is there."""

import re
from pathlib import Path

import pytest

from lightning_modules.transformer.presets import PRESETS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for pattern in ("*.md", "*/*.md") for page in ROOT.glob(pattern) if not page.parent.name.startswith(".")
)
LINK = re.compile(r"\[`(\w+)`\]\((\.\./[^)]+\.py)\)")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_the_file_defines_what_the_link_is_named_for(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (DOCS / target).exists(), target
    for name, target in LINK.findall(text):
        code = (DOCS / target).read_text()
        assert re.search(rf"^\s*(class|def) {name}\b", code, re.M) or name == Path(target).stem, (name, target)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+?)\s*$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_page_of_the_model_names_every_preset() -> None:
    text = (DOCS / "model.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in text] == []
    assert len(LINK.findall(text)) > 20
