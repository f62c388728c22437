"""The command `python -m distcnn.predict`: prints the most probable classes of images."""

import logging
from collections.abc import Sequence
from pathlib import Path

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.errors import DataError

log = logging.getLogger("distcnn")


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
        arguments: Command-line arguments, without the program name.

    Returns:
        The exit code, 0.
    """
    parser = Parser("distcnn.predict", "Prints the most probable classes of images.")
    parser.add_argument("model", help="Run directory, or a .keras file.")
    parser.add_argument(
        "images", nargs="+", help="Image files of any size and format, or folders of them."
    )
    parser.add_argument("--top", type=int, default=3, help="Number of classes to print.")
    parser.add_argument("--batch_size", type=int, default=512, help="Images per step.")
    parser.add_argument("--json", help="JSON file for the results.")
    parser.add_argument(
        "--on_error",
        choices=("fail", "skip"),
        default="fail",
        help="What to do with files that are not images.",
    )
    options = parser.parse_args(list(arguments))
    require_at_least_one(options, "top", "batch_size")
    paths = _find_images(options.images)

    import_tensorflow()
    from distcnn.inference.classifier import load_classifier
    from distcnn.inference.prediction import predict_files

    classifier = load_classifier(Path(options.model))
    probabilities, errors = predict_files(classifier, paths, options.batch_size)
    if errors and options.on_error == "fail":
        raise DataError(
            f"{len(errors)} of {len(paths)} files cannot be decoded: "
            f"{', '.join(list(errors.values())[:3])}; remove them, or pass --on_error skip"
        )
    for description in errors.values():
        log.warning("warning: skipped %s", description)
    outputs = probabilities.shape[1]
    classes = classifier.metadata.classes or tuple(str(index) for index in range(outputs))
    results = []
    for path, scores in zip([p for p in paths if p not in errors], probabilities, strict=True):
        best = scores.argsort()[::-1][: options.top]
        results.append(
            {
                "image": str(path),
                "top": [{"class": classes[i], "probability": float(scores[i])} for i in best],
            }
        )
        top = "  ".join(f"{classes[i]} {scores[i]:.4f}" for i in best)
        print(f"{path}  {top}")
    write_json(options.json, results)
    return 0


def _find_images(names: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")
            )
            if not inside:
                raise DataError(f"the folder {path} contains no files; expected images")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise DataError(f"the image {path} does not exist")
    return paths


if __name__ == "__main__":
    run_command(main)
