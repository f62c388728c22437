"""Names of the built-in recipes, and of recipes that were loaded."""

from pathlib import Path

BUILT_IN = Path(__file__).parent / "recipes"


class LoadedRecipe(str):
    """Name of the recipe that the values of a configuration were loaded from.

    Only the loaders create this type; `Config` rejects a plain string that names a built-in recipe.
    """

    __slots__ = ()


def recipe_names() -> list[str]:
    """Returns the names of the built-in recipes."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))
