"""The command `python -m distcnn.run`: runs a Keras script on any number of workers."""

from collections.abc import Sequence
from pathlib import Path

from distcnn.cli.command import run_command
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow, order_sets_alike
from distcnn.config import ScriptConfig
from distcnn.distribute.strategies import require_supported
from distcnn.errors import UsageError


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
        The exit code of the script.
    """
    own, script, rest = _split(arguments)
    parser = Parser("distcnn.run", "Runs a Keras script of your own on any number of workers.")
    parser.add_class_arguments(ScriptConfig)
    parser.hide_section_flags()
    parser.add_argument("script", help="The script, followed by its own arguments.")
    try:
        options = parser.parse_args([*own, *script])
        options.pop("debug")
        file = Path(options.pop("script"))
        config = ScriptConfig(**parser.instantiate(options).as_dict())
        require_supported(config.distribute)
        if not file.is_file():
            raise UsageError(f"script is {file}; expected the path of a Python file")
    except UsageError as error:
        error.on_every_rank = True  # every rank has the same command line
        raise
    order_sets_alike()
    import_tensorflow()
    from distcnn.scripting.runner import run_script  # imported late to keep --help fast

    return run_script(config, file, rest)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Splits a command line into our own flags, the script, and the script's arguments."""
    for place, argument in enumerate(arguments):
        if argument.endswith(".py"):
            return list(arguments[:place]), [argument], list(arguments[place + 1 :])
    return list(arguments), [], []


if __name__ == "__main__":
    run_command(main)
