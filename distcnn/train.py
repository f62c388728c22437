"""The command `python -m distcnn.train`: trains an image classifier."""

from collections.abc import Sequence

from distcnn.cli.command import EXIT_STOPPED, run_command
from distcnn.cli.parser import parse_config
from distcnn.cli.startup import import_tensorflow


def main(arguments: Sequence[str]) -> int:
    """Trains as the command line says.

    Args:
        arguments: The command line, without the program.

    Returns:
        0 when the run is done, 75 when a signal stopped it after it was saved.
    """
    config = parse_config("distcnn.train", "Trains an image classifier.", arguments)
    if config is None:
        return 0
    import_tensorflow()
    from distcnn.training.trainer import Trainer  # here, so that --help needs no TensorFlow

    summary = Trainer(config).fit()
    return EXIT_STOPPED if summary is None else 0


if __name__ == "__main__":
    run_command(main)
