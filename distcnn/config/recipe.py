"""Recipes: named configurations in YAML files, checked key by key."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distcnn.config.recipe_names import BUILT_IN, LoadedRecipe, recipe_names
from distcnn.config.safe_yaml import read_yaml
from distcnn.config.schema import WHOLE_KEYS, Config
from distcnn.config.sections.data import DataConfig
from distcnn.config.sections.train import TrainConfig
from distcnn.errors import UsageError


def config_keys(section: type = Config, prefix: str = "") -> list[str]:
    """Returns every dotted key of the configuration, in order."""
    keys: list[str] = []
    types = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        field_type = types[field.name]
        if dataclasses.is_dataclass(field_type):
            keys += config_keys(typing.cast(type, field_type), f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean X?"` for the known name nearest to `name`, or an empty string."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not matches:
        last = name.rsplit(".", 1)[-1]
        matches = [key for key in known if key.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {matches[0]}?" if matches else ""


def load_recipe(name: str) -> dict[str, Any]:
    """Reads a recipe as a flat mapping from dotted keys to values.

    The key `recipe` of a file may name a built-in recipe to start from; the other keys of the file
    then override those of that recipe.

    Args:
        name: Name of a built-in recipe, or path to a YAML file.

    Raises:
        UsageError: If there is no such recipe, the file is not YAML, or a key is unknown.
    """
    if name in recipe_names():
        path = BUILT_IN / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        names = ", ".join(recipe_names())
        raise UsageError(
            f"there is no recipe {name!r}; expected one of {names}, or a file ending in .yaml"
            + nearest(name, recipe_names())
        )
    values = _read(path)
    base = values.pop("recipe", None)
    if base is not None and base != name and base in recipe_names():
        values = without_excluded(load_recipe(base), values) | values
    elif base is not None and base != path.stem and set(config_keys()) - set(values) - {"recipe"}:
        raise UsageError(
            f"{path}: recipe is {base!r}; expected a built-in recipe to start from: "
            f"{', '.join(recipe_names())}"
        )
    label = base if base is not None and path.name == "config.yaml" else path.stem
    return values | {"recipe": LoadedRecipe(label)}


FOR_IMAGES = (
    *(
        "data.dir",
        "data.labels",
        "data.augment",
        "data.resize",
        "data.crop_fraction",
        "optimizer.ema",
    ),
    *("train.accumulation_steps", "train.virtual_workers", "train.test_flip"),
    *("train.test_shift", "train.phases", "model.whitening", "optimizer.layer_decay", "init_from"),
)
"""Keys and sections that only apply to the images of a data set."""


def without_excluded(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Drops the values of a recipe that do not apply beside the keys that replace others.

    These are the global batch size if `keys` set the batch size per worker, the epochs if `keys`
    set phases, pretrained weights and whitening if `keys` set the weights to begin with, the
    arguments of the recipe's model and its whitening if `keys` choose another model, and what is
    for images if `keys` choose the user's own data.
    """
    keys = set(keys)
    dropped = set()
    if "train.batch_size" in keys:
        dropped.add("train.global_batch_size")
    if "train.phases" in keys:
        dropped.add("train.epochs")
    if "init_from" in keys:
        dropped |= {"model.weights", "model.whitening"}
    if keys & {"model.name", "model.factory"}:
        dropped |= {"model.args", "model.whitening"}
    if "data.factory" in keys:
        dropped |= {key for key in values if key.startswith(FOR_IMAGES)}
    return {key: value for key, value in values.items() if key not in dropped - keys}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UsageError(f"the recipe {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"the recipe {path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise UsageError(
            f"the recipe {path} contains no keys; expected lines like `train: {{...}}`"
        )
    known = config_keys()
    values = flatten(content)
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key}{nearest(key, known)}")
    return values


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested sections into dotted keys; the values of `WHOLE_KEYS` stay nested."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in WHOLE_KEYS:
            values |= flatten(value, f"{key}.")
        else:
            values[key] = value
    return values


def settings_of_run(path: Path) -> dict[str, Any]:
    """Returns the flat configuration of the run that a path belongs to, or an empty one.

    Args:
        path: Run directory, or a file in it.
    """
    folder = path if path.is_dir() else path.parent
    is_run = all((folder / name).exists() for name in ("config.yaml", "environment.json"))
    return _read(folder / "config.yaml") if is_run else {}


DATA_KEYS_OF_RUN = (
    *("name", "dir", "validation", "validation_split", "test_split", "cache", "on_error"),
    *("synthetic_examples", "classes", "labels", "task"),
    *("path_column", "label_column", "split_column"),
)
"""Keys of the data section that say which images a run saw, and how they were split."""

PREPROCESSING_KEYS_OF_RUN = ("resize", "crop_fraction", "reduced_decoding", "check")
"""Keys of the data section that say how images become the input of a run's model."""


def preprocessing_of_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of `PREPROCESSING_KEYS_OF_RUN` in a run's flat configuration.

    `check` becomes what the run resolved it to, since its images are split as they were there.
    """
    values = {
        key: settings[f"data.{key}"]
        for key in PREPROCESSING_KEYS_OF_RUN
        if f"data.{key}" in settings
    }
    if values.get("check") == "auto" and settings.get("data.augment.random_resized_crop"):
        values["check"] = "reading"
    return values


def require_images(path: Path, settings: Mapping[str, Any]) -> None:
    """Checks that a run was trained on images of a data set.

    Raises:
        UsageError: If it was trained on data of the user's own.
    """
    factory = settings.get("data.factory")
    if factory:
        raise UsageError(
            f"{path} was trained on the data of {factory}; its summary.json has the test results. "
            "For the images of a data set, name that; for other data, load model.keras by Keras "
            "and use its evaluate or predict"
        )


def data_of_run(path: Path) -> tuple[DataConfig, int] | None:
    """Returns the images that a run was trained on, and the seed of their split.

    Args:
        path: Run directory, or a file in it.

    Returns:
        The data section and the seed; None if the path belongs to no run.
    """
    settings = settings_of_run(path)
    if not settings:
        return None
    require_images(path, settings)
    values = {key: settings[f"data.{key}"] for key in DATA_KEYS_OF_RUN if f"data.{key}" in settings}
    values |= preprocessing_of_run(settings)
    return DataConfig(**values), settings.get("train.seed", TrainConfig.seed)
