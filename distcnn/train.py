"""The command `python -m distcnn.train`: trains an image classifier."""

from collections.abc import Sequence

from distcnn.cli.command import EXIT_STOPPED, run_command
from distcnn.cli.parser import parse_config
from distcnn.cli.startup import import_tensorflow
from distcnn.runtime.extras import require_extra


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 when the run is finished, 75 when a signal stopped it after saving.
    """
    config = parse_config("distcnn.train", "Trains an image classifier.", arguments)
    if config is None:
        return 0
    for name in config.logging.tracker_names:
        if name in ("mlflow", "wandb"):
            require_extra(f"--logging.trackers {name}", name, [name])
    import_tensorflow()
    if config.data.factory is not None:
        from distcnn.scripting.own_run import OwnDataRun  # imported late to keep --help fast

        OwnDataRun(config).fit()
        return 0
    from distcnn.training.trainer import Trainer

    summary = Trainer(config).fit()
    return EXIT_STOPPED if summary is None else 0


if __name__ == "__main__":
    run_command(main)
