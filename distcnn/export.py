"""The command `python -m distcnn.export`: writes a classifier in the formats of other runtimes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.errors import DistcnnError, UsageError
from distcnn.inference.exporting.formats import (
    FORMATS,
    LEAST_AGREEMENT,
    chosen,
    require_packages,
)
from distcnn.runtime.text import printable

if TYPE_CHECKING:
    from distcnn.inference.exporting.exporter import Export, Report


def main(arguments: Sequence[str]) -> int:
    """Exports a classifier, and prints how each export differs from the Keras model."""
    parser = _parser(FORMATS, LEAST_AGREEMENT)
    options, data, seed = parser.parse_with_data(arguments)
    formats = chosen("--format", options.format, FORMATS)
    precisions = chosen("--precision", options.precision, LEAST_AGREEMENT)
    require_at_least_one(options, "images", "calibration_images")
    least = options.least_agreement
    if least is not None and not 0 <= least <= 1:
        raise UsageError(f"least_agreement is {least}; expected a fraction from 0 to 1")
    require_writable("--json", options.json)
    require_packages(formats, precisions, bytes_in=options.bytes_in)

    import_tensorflow()
    from distcnn.inference.exporting.exporter import export_model
    from distcnn.storage.model_file import find_model

    file = find_model(Path(options.model))
    report = export_model(
        file,
        Path(options.out) if options.out else file.with_name("export"),
        [(name, precision) for name in formats for precision in precisions],
        data,
        seed,
        bytes_in=options.bytes_in,
        images=options.images,
        calibration_images=options.calibration_images,
        trust=options.trust,
    )
    _print(report)
    write_json(options.json, report.as_dict())
    bounds = LEAST_AGREEMENT if least is None else dict.fromkeys(LEAST_AGREEMENT, least)
    _require_agreement(report.exports, bounds)
    return 0


_MEASURES = {
    "classification": "the largest difference of a probability, the fraction of equal classes",
    "multilabel": "the largest difference of a probability, the fraction of images with the same "
    "labels above 0.5; accuracy counts images whose labels are all right",
    "regression": "the largest difference of a number in its own unit, the fraction of images "
    "whose numbers are within a tenth of their standard deviation; mae is the mean absolute error",
}


def _parser(formats: Iterable[str], precisions: Iterable[str]) -> Parser:
    parser = Parser(
        "distcnn.export",
        "Writes a classifier in the formats of other runtimes, and compares each with Keras.",
    )
    parser.add_argument("model", help="Run directory, or a .keras file.")
    parser.add_argument(
        "--format", default="savedmodel", help=f"One or more, with commas, of {', '.join(formats)}."
    )
    parser.add_argument(
        "--precision",
        default="float32",
        help=f"One or more, with commas, of {', '.join(precisions)}; each format is written in all "
        "of them. int8 is calibrated on the run's images.",
    )
    parser.add_argument(
        "--bytes_in",
        action="store_true",
        help="Take the bytes of image files, decode and resize them inside, and return labels too.",
    )
    parser.add_argument(
        "--out", help="Folder for the exports. Default: the folder export next to the model."
    )
    parser.add_argument(
        "--images", type=int, default=1000, help="Images to compare on, at most; test images first."
    )
    parser.add_argument(
        "--calibration_images",
        type=int,
        default=256,
        help="Training images that int8 is calibrated on, at most.",
    )
    parser.add_argument(
        "--least_agreement",
        type=float,
        help="Fraction of the images that must get the same result as from Keras; below it, the "
        "exit code is 1. Default: 0.999 for float32, 0.99 for float16, 0.95 for int8.",
    )
    parser.add_argument("--json", help="JSON file for the results.")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Run code that the model needs: the module of its model.factory, lambdas in its file.",
    )
    return parser


def _print(report: "Report") -> None:
    # Names of files are no markup; output that is not a terminal has no width to fit into.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    is_numbers = report.task == "regression"
    columns = ("difference", "agreement", "mae" if is_numbers else "accuracy", "bytes", "ms")
    table = Table("format", "precision", *columns, "runtime", "file")
    for column in table.columns[2:7]:
        column.justify = "right"
    for each in [*report.keras, *report.exports]:
        parity = each.parity
        table.add_row(
            each.format,
            each.precision,
            f"{parity.largest_difference:.1e}",
            f"{parity.agreement:.4f}",
            f"{parity.mae if is_numbers else parity.accuracy:.4f}",
            f"{each.size:,}",
            f"{parity.milliseconds:.2f}",
            each.runtime,
            printable(each.path),
        )
    console.print(table)
    print(
        f"compared on {report.images} {report.split} images with the Keras model in float32: "
        f"{_MEASURES[report.task]}; ms for one image"
    )


def _require_agreement(exports: Sequence["Export"], bounds: dict[str, float]) -> None:
    low = [each for each in exports if each.parity.agreement < bounds[each.precision]]
    if low:
        names = ", ".join(
            f"{each.format} {each.precision} ({each.parity.agreement:.4f}, expected at least "
            f"{bounds[each.precision]:g})"
            for each in low
        )
        raise DistcnnError(
            f"{len(low)} of {len(exports)} exports give too many images another result than the "
            f"Keras model: {names}; do not use them, or accept that by --least_agreement"
        )


if __name__ == "__main__":
    run_command(main)
