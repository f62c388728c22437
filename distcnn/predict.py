"""The command `python -m distcnn.predict`: prints the most probable classes of images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.errors import UsageError
from distcnn.inference.image_files import find_images
from distcnn.runtime.text import decimals, printable

if TYPE_CHECKING:
    from distcnn.inference.prediction import Prediction

log = logging.getLogger("distcnn")


def main(arguments: Sequence[str]) -> int:
    """Classifies images and prints their most probable classes."""
    parser = _parser()
    of_split = any(argument.startswith("--split") for argument in arguments)
    if of_split:
        options, data, seed = parser.parse_with_data(arguments)
    else:
        options, data = parser.parse_with_preprocessing(arguments)
    require_at_least_one(options, "top", "batch_size")
    require_writable("--json", options.json)
    if of_split == bool(options.images):
        raise UsageError(
            "no images are named; pass files or folders, or --split test for those of the run"
            if not of_split
            else "images are named beside --split; pass one of them"
        )
    find_images(options.images)  # a missing file is named before TensorFlow is imported

    import_tensorflow()
    images: Sequence[str | Path] = options.images
    if of_split:
        from distcnn.inference.test_files import test_files_of

        images = test_files_of(data, seed)
    from distcnn.inference.prediction import predict

    predictions = predict(
        options.model,
        images,
        on_error=options.on_error,
        batch_size=options.batch_size,
        trust=options.trust,
        data=data,
    )
    results = []
    for prediction in predictions:
        result, best = _result_of(prediction, options.top)
        results.append({"image": str(prediction.path), **result})
        shown = decimals if prediction.task == "regression" else "{:.4f}".format
        scores = "  ".join(f"{printable(name)} {shown(value)}" for name, value in best)
        print(f"{printable(prediction.path)}  {scores}")
    write_json(options.json, results)
    return 0


def _parser() -> Parser:
    parser = Parser("distcnn.predict", "Prints the most probable classes of images.")
    parser.add_argument("model", help="Run directory, or a .keras file.")
    parser.add_argument(
        "images", nargs="*", help="Image files of any size and format, or folders of them."
    )
    parser.add_argument(
        "--split",
        choices=("test",),
        help="In place of images: the test images of the run, or of the data that is named.",
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
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Run code that the model needs: the module of its model.factory, lambdas in its file.",
    )
    return parser


def _result_of(
    prediction: "Prediction", count: int
) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    """Returns a prediction for the JSON file, and what to print of it."""
    if prediction.task == "regression":
        numbers = prediction.numbers()
        return {"numbers": numbers}, list(numbers.items())
    best = prediction.top(count)
    result: dict[str, Any] = {"top": [{"class": name, "probability": p} for name, p in best]}
    if prediction.task == "multilabel":
        result["labels"] = prediction.labels()
    return result, best


if __name__ == "__main__":
    run_command(main)
