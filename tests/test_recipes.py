"""Each recipe is a whole params.yaml that works with this version."""

from pathlib import Path

import pytest

from stages.params import load_params

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_is_right_and_stands_in_the_table(recipe: Path) -> None:
    params = load_params(recipe)
    assert params.tasks
    assert f"`{recipe.name}`" in (recipe.parent / "README.md").read_text()
