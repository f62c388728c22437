"""The command `python -m distcnn.evaluate`: evaluates a classifier on labelled images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.config import DataConfig
from distcnn.errors import UsageError
from distcnn.runtime.text import decimals, printable

if TYPE_CHECKING:
    from distcnn.inference.evaluation import AnyEvaluation, Evaluation, Evaluator, SplitName
    from distcnn.inference.label_evaluation import LabelEvaluation
    from distcnn.inference.number_evaluation import NumberEvaluation


def main(arguments: Sequence[str]) -> int:
    """Evaluates a classifier, prints its scores by class and draws the confusion matrix."""
    options, data, seed = _parser().parse_with_data(arguments)
    require_at_least_one(options, "batch_size")
    require_writable("--json", options.json)
    other = None
    if options.against is not None:
        flags = _data_flags(arguments)
        other = _parser().parse_with_data([options.against, *flags])[1:]

    import_tensorflow()
    from distcnn.inference.details.details import make_details, scores_of
    from distcnn.inference.evaluation import Evaluation, Evaluator
    from distcnn.storage.model_file import find_model

    file = find_model(Path(options.model))
    split = options.split
    plot = Path(options.plot or file.with_name(f"confusion_{split}.png"))
    require_writable("--plot", plot)
    evaluator = Evaluator(file, data, seed, options.batch_size, trust=options.trust)
    _require_top_k(options.top_k, evaluator)
    against = _open_other(evaluator, options, other) if other else None
    result = evaluator.evaluate(split)
    content = {
        "model": str(file),
        "data": data.source,
        "split": split,
        "images": len(result.labels),
    }
    content |= scores_of(result, options.top_k)
    if isinstance(result, Evaluation):
        _print_result(result, content)
    else:
        _print_scores(result)
    if against is not None:
        content["against"] = _compare(evaluator, result, against, split)
    pictures = {}
    if options.details:
        details = make_details(evaluator, split, result)
        content |= details.as_dict()
        _print_lines(details.lines())
        pictures = details.pictures(result)
    write_json(options.json, content)
    _write_pictures(result, plot, split, pictures)
    return 0


def _parser() -> Parser:
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
        "--top_k",
        type=int,
        help="An image counts as right if its class is among so many of the most probable ones. "
        "Default: 5 if there are more classes.",
    )
    parser.add_argument(
        "--details",
        action="store_true",
        help="Also ROC and precision-recall curves, temperature, thresholds of several labels, and "
        "the worst mistakes with Grad-CAM, with pictures beside the confusion matrix.",
    )
    parser.add_argument(
        "--against",
        help="Another run directory or .keras file, compared on the same images by McNemar's test.",
    )
    parser.add_argument(
        "--plot", help="PNG file for the confusion matrix. Default: next to the model."
    )
    parser.add_argument("--json", help="JSON file for the results.")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Run code that the model needs: the module of its model.factory, lambdas in its file.",
    )
    return parser


def _data_flags(arguments: Sequence[str]) -> list[str]:
    """Returns the flags of the data section, with their values."""
    flags: list[str] = []
    for index, argument in enumerate(arguments):
        if argument.startswith("--data."):
            flags += arguments[index : index + (1 if "=" in argument else 2)]
    return flags


def _require_top_k(top_k: int | None, evaluator: "Evaluator") -> None:
    count, task = len(evaluator.source.classes), evaluator.source.task
    if top_k is None:
        return
    if task != "classification":
        raise UsageError(f"top_k is {top_k}, but the images have no single class; leave it out")
    if not 1 <= top_k <= count:
        raise UsageError(f"top_k is {top_k}; expected a number from 1 to {count}, the classes")


def _open_other(evaluator: "Evaluator", options: Any, data: tuple[DataConfig, int]) -> "Evaluator":
    """Opens the classifier of `--against`."""
    from distcnn.inference.details.pairing import require_comparable
    from distcnn.inference.evaluation import Evaluator
    from distcnn.storage.model_file import find_model

    file = find_model(Path(options.against))
    images, seed = data
    other = Evaluator(file, images, seed, options.batch_size, trust=options.trust)
    require_comparable(evaluator, other, options.split)
    return other


def _compare(
    evaluator: "Evaluator", result: "AnyEvaluation", other: "Evaluator", split: "SplitName"
) -> dict[str, Any]:
    """Compares two classifiers; returns the comparison for JSON."""
    from distcnn.inference.details.pairing import pair

    pairing = pair(evaluator, result, other, split)
    _print_lines(pairing.lines())
    return pairing.as_dict()


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(printable(line))


def _write_pictures(
    result: "AnyEvaluation", plot: Path, split: str, pictures: Mapping[str, bytes]
) -> None:
    from distcnn.inference.evaluation import Evaluation
    from distcnn.inference.plots import confusion_figure, to_png

    for name, content in pictures.items():
        file = plot.with_name(f"{name}_{split}.png")
        file.write_bytes(content)
        print(f"{name} as a picture: {printable(file)}")
    if isinstance(result, Evaluation):
        plot.write_bytes(to_png(confusion_figure(result.confusion(), result.classes)))
        print(f"confusion matrix as a picture: {printable(plot)}")


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
        scores = ("-" if row[name] is None else decimals(row[name]) for name in names)
        table.add_row(printable(row["class"]), *scores, str(row["images"]))
    return table


def _print_scores(result: "LabelEvaluation | NumberEvaluation") -> None:
    """Prints the result for images with several labels, or with numbers."""
    found = result.results()
    headings = {"average_precision": "AP", "f1": "F1"}
    rows = found.pop("classes")
    names = {name: headings.get(name, name) for name in rows[0] if name not in ("class", "images")}
    _console().print(_scores_table(rows, names))
    scores = (f"{name} {decimals(value)}" for name, value in found.items() if value is not None)
    print(f"images {len(result.labels)}  {'  '.join(scores)}")


def _print_result(result: "Evaluation", content: Mapping[str, Any]) -> None:
    console = _console()
    matrix = result.confusion()
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
    line = f"images {len(result.labels)}  accuracy {result.accuracy:.4f}  loss {result.loss:.4f}"
    if "top_k" in content:
        line += f"  top-{content['top_k']} {content['top_k_accuracy']:.4f}"
    print(f"{line}  ECE {content['calibration']['ece']:.4f}")


if __name__ == "__main__":
    run_command(main)
