"""The command `python -m distcnn.evaluate`: evaluates a classifier on labelled images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.runtime.text import printable

if TYPE_CHECKING:
    import numpy as np

    from distcnn.inference.evaluation import Evaluation
    from distcnn.inference.label_evaluation import LabelEvaluation
    from distcnn.inference.number_evaluation import NumberEvaluation


def main(arguments: Sequence[str]) -> int:
    """Evaluates a classifier, prints its scores by class and draws the confusion matrix."""
    parser = Parser("distcnn.evaluate", "Evaluates a classifier on labelled images.")
    parser.add_argument("model", help="Run directory, or a .keras file.")
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="Split to evaluate on.",
    )
    parser.add_argument("--batch_size", type=int, default=512, help="Images per step.")
    parser.add_argument(
        "--plot", help="PNG file for the confusion matrix. Default: next to the model."
    )
    parser.add_argument("--json", help="JSON file for the results.")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Run code that the model needs: the module of its model.factory, lambdas in its file.",
    )
    options, data, seed = parser.parse_with_data(arguments)
    require_at_least_one(options, "batch_size")
    require_writable("--json", options.json)

    import_tensorflow()
    from distcnn.inference.evaluation import Evaluation, evaluate_model
    from distcnn.inference.plots import confusion_figure, to_png
    from distcnn.storage.model_file import find_model

    file = find_model(Path(options.model))
    plot = Path(options.plot or file.with_name(f"confusion_{options.split}.png"))
    require_writable("--plot", plot)
    result = evaluate_model(
        file, data, seed, options.split, options.batch_size, trust=options.trust
    )
    about = {
        "model": str(file),
        "data": data.source,
        "split": options.split,
        "images": len(result.labels),
    }
    if not isinstance(result, Evaluation):
        _print_scores(result)
        write_json(options.json, about | result.results())
        return 0
    _print_result(result, result.confusion())
    write_json(
        options.json,
        {
            **about,
            "accuracy": result.accuracy,
            "loss": result.loss,
            "classes": result.by_class(),
            "confusion_matrix": result.confusion().tolist(),
        },
    )
    plot.write_bytes(to_png(confusion_figure(result.confusion(), result.classes)))
    print(f"confusion matrix as a picture: {printable(plot)}")
    return 0


def _console() -> Console:
    # Class names are no markup; output that is not a terminal has no width to fit into.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def _scores_table(rows: list[dict[str, Any]], names: dict[str, str]) -> Table:
    """Returns a table with a row for each class.

    Args:
        rows: The class, the number of images and the scores of each class.
        names: Headings of the scores, by their keys.
    """
    table = Table("class", *names.values(), "images")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        scores = ("-" if row[name] is None else f"{row[name]:.4f}" for name in names)
        table.add_row(printable(row["class"]), *scores, str(row["images"]))
    return table


def _print_scores(result: "LabelEvaluation | NumberEvaluation") -> None:
    """Prints the result for images with several labels, or with numbers."""
    found = result.results()
    headings = {"average_precision": "AP", "f1": "F1"}
    rows = found.pop("classes")
    names = {name: headings.get(name, name) for name in rows[0] if name not in ("class", "images")}
    _console().print(_scores_table(rows, names))
    scores = (f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    print(f"images {len(result.labels)}  {'  '.join(scores)}")


def _print_result(result: "Evaluation", matrix: "np.ndarray") -> None:
    console = _console()
    names_of_scores = {"precision": "precision", "recall": "recall", "f1": "F1"}
    console.print(_scores_table(result.by_class(), names_of_scores))
    names = [printable(name) for name in result.classes]
    digits = len(str(matrix.max()))
    confusion_width = max(map(len, ("true", *names))) + 4 + len(names) * (digits + 3)
    if len(names) <= 20 and confusion_width <= console.width:
        confusion = Table("true", *names, title="images by true and predicted class")
        confusion.columns[0].no_wrap = True
        for column in confusion.columns[1:]:
            column.justify = "right"
            column.overflow = "fold"
        for name, counts in zip(names, matrix, strict=True):
            confusion.add_row(name, *(str(count) if count else "." for count in counts))
        console.print(confusion)
    print(f"images {len(result.labels)}  accuracy {result.accuracy:.4f}  loss {result.loss:.4f}")


if __name__ == "__main__":
    run_command(main)
