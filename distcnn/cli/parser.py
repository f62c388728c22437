"""Builds a validated `Config` from flags or from Python values."""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from distcnn.config import AUGMENT_PRESETS, Config, DataConfig
from distcnn.config.lookup import require_known
from distcnn.config.recipe import (
    DATA_KEYS_OF_RUN,
    PREPROCESSING_KEYS_OF_RUN,
    config_keys,
    flatten,
    load_recipe,
    nearest,
    require_images,
    settings_of_run,
    without_excluded,
)
from distcnn.config.sections.train import require_fitting_epochs
from distcnn.data.sources import SOURCES, require_fitting_dir
from distcnn.distribute.strategies import STRATEGY_NAMES, require_supported
from distcnn.errors import UsageError
from distcnn.models.catalog import MODELS
from distcnn.optim.catalog import OPTIMIZERS, SCHEDULES
from distcnn.storage.model_metadata import division_of, preprocessing_of

NAMED: dict[str, Mapping[str, Any]] = {
    "data.name": SOURCES,
    "model.name": MODELS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "distribute.strategy": STRATEGY_NAMES,
}
"""Keys whose value is a registered name, with the table of these names."""

DEFAULT_RECIPE = "article"
"""Recipe of a command line without `--recipe`."""


class Parser(jsonargparse.ArgumentParser):
    """Parser that raises one-line `UsageError`s, which suggest the nearest flag."""

    def __init__(self, prog: str, description: str) -> None:
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        by_name = sys.argv[0].startswith("distcnn ")  # set by `distcnn.cli.commands.main`
        usage = sys.argv[0] if by_name else f"python -m {prog}"
        super().__init__(prog=usage, description=description, allow_abbrev=False)
        self.add_argument(
            "--debug", action="store_true", help="Show the full traceback of an error."
        )

    def add_data_arguments(self, *keys: str) -> None:
        """Adds the flags `--data.KEY` of the given keys of the data section."""
        others = {field.name for field in dataclasses.fields(DataConfig)} - set(keys)
        self.add_class_arguments(DataConfig, "data", skip=others)
        self.hide_section_flags()

    def parse_with_data(self, arguments: Sequence[str]) -> tuple[Any, DataConfig, int]:
        """Parses a command line whose argument `model` may be a run; its data is then the default.

        Args:
            arguments: The command line; its `--data.*` flags override the run's values, and
                `--data.name` discards all of them but how images become the model's input, and
                how they are divided where the data has no splits.

        Returns:
            The options, the data section, and the seed of the validation split.

        Raises:
            UsageError: If the model belongs to no run, and `--data.name` is missing; or if
                `--data.dir` does not fit it.
        """
        self.add_data_arguments(*DATA_KEYS_OF_RUN, *PREPROCESSING_KEYS_OF_RUN)
        path = Path(self.parse_args(list(arguments)).model)
        settings = settings_of_run(path)
        preprocessing = preprocessing_of(path)
        division, seed = division_of(path)
        known_values = {**division, **preprocessing}
        flags = [f"--data.{key}={_as_flag(value)}" for key, value in known_values.items()]
        if not any(argument.startswith("--data.name") for argument in arguments):
            known = {flag for action in self._actions for flag in action.option_strings}
            known = {flag for flag in known if flag.startswith("--data.")}  # --out is our own
            of_run = [f"--{k}={_as_flag(v)}" for k, v in settings.items() if f"--{k}" in known]
            flags = [*of_run, *flags]
            labelled = any(argument.startswith("--data.labels") for argument in arguments)
            if not settings and not labelled:
                raise UsageError(
                    f"{path} belongs to no run, so its images are not known; add --data.name NAME, "
                    "and --data.dir DIR for your own, or --data.labels FILE"
                )
            require_images(path, settings)
        options = self.parse_args([*flags, *arguments])
        data = DataConfig(**options.data.as_dict())
        require_fitting_dir(data)
        return options, data, seed

    def parse_with_preprocessing(self, arguments: Sequence[str]) -> tuple[Any, DataConfig]:
        """Parses a command line whose argument `model` may be a run, for images without labels.

        Args:
            arguments: The command line; its flags override how the run made images its input.

        Returns:
            The options, and a data section that says how images become the model's input.

        Raises:
            UsageError: If a flag or a value is wrong.
        """
        self.add_data_arguments(*PREPROCESSING_KEYS_OF_RUN)
        path = Path(self.parse_args(list(arguments)).model)
        values = preprocessing_of(path)
        flags = [f"--data.{key}={_as_flag(value)}" for key, value in values.items()]
        options = self.parse_args([*flags, *arguments])
        return options, DataConfig(**options.data.as_dict())

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses the arguments, and checks the keys whose value is a registered name.

        Raises:
            UsageError: If a flag or a value is wrong.
        """
        options = super().parse_args(*args, **kwargs)
        for key, table in NAMED.items():
            if options.get(key) is not None:
                require_known(key, options[key], table)
        return options

    def hide_section_flags(self) -> None:
        """Hides the flags that read a whole section from a file in the help, and lists names."""
        for action in self._actions:
            if action.metavar == "CONFIG":
                short_form = (
                    f"Enable only these, at usual strength: {', '.join(AUGMENT_PRESETS)}; or none."
                )
                is_augment = action.dest == "data.augment"
                action.help = short_form if is_augment else jsonargparse.SUPPRESS
                action.metavar = "NAME,NAME"
            elif action.dest in NAMED:
                action.metavar = f"{{{','.join(NAMED[action.dest])}}}"

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises a `UsageError` instead of printing the usage."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise UsageError(_readable(message, flags))


def parse_config(prog: str, description: str, arguments: Sequence[str]) -> Config | None:
    """Parses the command line of a training run; see `parse_run`.

    Returns:
        The configuration, or None if `--print-config` only printed it.
    """
    return parse_run(prog, description, arguments, {})[0]


def parse_run(
    prog: str,
    description: str,
    arguments: Sequence[str],
    own: Mapping[str, Mapping[str, Any]],
) -> tuple[Config | None, dict[str, Any]]:
    """Parses a command line with the flags of a training run.

    Flags override the recipe's values, even if they come before `--recipe`.

    Args:
        prog: Name of the module that runs.
        description: Description for the help text.
        arguments: The command line, without the program.
        own: Further flags of the command: their names, and the arguments of `add_argument`.

    Returns:
        The configuration, or None if `--print-config` only printed it; and the values of the
        command's own flags by name.

    Raises:
        UsageError: If a flag, a value or a combination is wrong.
    """
    parser = Parser(prog, description)
    for name, settings in own.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument(
        "--print-config", action="store_true", help="Print the configuration as YAML and exit."
    )
    parser.add_class_arguments(Config)
    parser.hide_section_flags()
    given = [argument.partition("=")[0].removeprefix("--") for argument in arguments]
    values = without_excluded(load_recipe(_recipe_of(arguments)), given)
    recipe = values.pop("recipe")
    if {"-h", "--help"} & set(arguments):
        parser.set_defaults(
            {**values, "recipe": recipe}
        )  # shown as defaults; parsing checks them as flags below
    from_recipe = [f"--{key}={_as_flag(value)}" for key, value in values.items()]
    try:
        namespace = parser.parse_args([*from_recipe, *_expand_augment(arguments)])
        namespace.recipe = recipe
        print_config = namespace.pop("print_config")
        namespace.pop("debug")
        options = {name: namespace.pop(name) for name in own}
        epochs = namespace.train.epochs
        config = Config(**parser.instantiate(namespace).as_dict())
        if "train.epochs" in {*values, *given}:
            require_fitting_epochs(epochs, config.train)
        require_fitting_dir(config.data)
        require_supported(config.distribute)
    except UsageError as error:
        error.on_every_rank = True  # every rank has the same command line
        raise
    if print_config:
        sys.stdout.write(config.to_yaml())
        return None, options
    return config, options


def load_config(recipe: str = DEFAULT_RECIPE, /, **overrides: Any) -> Config:
    """Builds the configuration of a run from a recipe.

    Args:
        recipe: Name of a built-in recipe, or path of a YAML file.
        **overrides: Values that override the recipe's: a mapping for a section, as in
            `train={"epochs": 3}`, or a value for a top-level key, as in `out="runs/mine"`.

    Raises:
        UsageError: If the recipe, a key, a value or a combination is wrong.

    Example:
        >>> load_config("fast", train={"epochs": 3}, data={"augment": "flip,crop"})
    """
    values = flatten({name: _as_mapping(value) for name, value in overrides.items()})
    known = {*config_keys(), "data.augment"}
    for key in values:
        if key not in known or key == "recipe":
            raise UsageError(f"unknown key {key}{nearest(key, known)}")
    flags = [f"--recipe={recipe}", *(f"--{key}={_as_flag(v)}" for key, v in values.items())]
    config = parse_config("distcnn.load_config", "", flags)
    assert config is not None
    return config


def _as_mapping(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _recipe_of(arguments: Sequence[str]) -> str:
    recipe = DEFAULT_RECIPE
    for position, argument in enumerate(arguments):
        if argument == "--recipe" and position + 1 < len(arguments):
            recipe = arguments[position + 1]
        elif argument.startswith("--recipe="):
            recipe = argument.removeprefix("--recipe=")
    return recipe


def _as_flag(value: object) -> str:
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)


def _expand_augment(arguments: Sequence[str]) -> list[str]:
    """Replaces `--data.augment flip,crop` by one flag per key of the section."""
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--data.augment":
            expanded.append(argument)
            continue
        names = (value if equals else next(rest, "")).split(",")
        for preset in names:
            if preset not in AUGMENT_PRESETS and names != ["none"]:
                known = ", ".join(AUGMENT_PRESETS)
                hint = nearest(preset, AUGMENT_PRESETS)
                raise UsageError(
                    f"data.augment is {preset!r}; expected none, or a list of {known}{hint}"
                )
        expanded.append("--data.augment.extra={}")
        for preset, settings in AUGMENT_PRESETS.items():
            for key, strength in settings.items():
                chosen = strength if preset in names else type(strength)(0)
                expanded.append(f"--data.augment.{key}={_as_flag(chosen)}")
    return expanded


def _readable(message: str, flags: Sequence[str]) -> str:
    """Rewrites a parser's message as one line in terms of the configuration."""
    message = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        flag = unknown[1].partition("=")[0]
        known = sorted({*flags, *(f"--{key}" for key in config_keys())} & set(flags))
        return f"unknown argument {flag}{nearest(flag, known)}"
    wrong = re.search(
        r'Parser key "([^"]+)": (?:.*?)Expected an? (.+?)\. Got value: (.*)$', message
    )
    if wrong:
        key, expected, received = wrong.groups()
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
        expected = re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", expected)
        hint = nearest(received, re.findall(r"'([^']+)'", expected))
        if key == "train.phases":
            expected = """a list of mappings, such as '[{"train": "head", "epochs": 3}]'"""
        elif expected.lower() == "list":
            expected = f"a list, such as '{_as_list(received)}'"
        elif expected == "dict":
            expected = """a mapping, such as '{"name": 1}'"""
        return f"{key} is {received!r}; expected {expected}{hint}"
    return message


def _as_list(received: str) -> str:
    """Returns as JSON what somebody has probably meant by values without brackets."""
    values = [value.strip() for value in received.strip("[]'\"").split(",")]
    is_number = all(re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", value) for value in values)
    return f"[{', '.join(values)}]" if is_number else json.dumps(values)
