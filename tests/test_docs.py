"""The pages of docs/ point at what is there."""

import re
from pathlib import Path

import pytest

from lightning_modules.transformer.presets import PRESETS

DOCS = Path(__file__).parents[1] / "docs"
LINK = re.compile(r"\[`(\w+)`\]\((\.\./[^)]+\.py)\)")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_the_file_defines_what_the_link_is_named_for(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (DOCS / target).exists(), target
    for name, target in LINK.findall(text):
        code = (DOCS / target).read_text()
        assert re.search(rf"^\s*(class|def) {name}\b", code, re.M) or name == Path(target).stem, (name, target)


def test_the_page_of_the_model_names_every_preset() -> None:
    text = (DOCS / "model.md").read_text()
    assert [name for name in PRESETS if f"`{name}`" not in text] == []
    assert len(LINK.findall(text)) > 20
