"""The built-in recipes by name, and a mark for configurations that were loaded from one."""

from pathlib import Path

BUILT_IN = Path(__file__).parent / "recipes"


class LoadedRecipe(str):
    """The name of a recipe from which a configuration's values were really loaded.

    Only the loaders make one. A plain string cannot claim the name of a built-in recipe, see
    `Config`.
    """

    __slots__ = ()


def recipe_names() -> list[str]:
    """Returns the names of the built-in recipes."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))
