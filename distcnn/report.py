"""The command `python -m distcnn.report`: writes a report on a run as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.config import DataConfig
from distcnn.config.recipe import data_of_run
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.files import parse_json, write_text
from distcnn.runtime.text import printable
from distcnn.storage.run_list import RunRecord, find_runs

if TYPE_CHECKING:
    from distcnn.inference.evaluation import SplitName


def main(arguments: Sequence[str]) -> int:
    """Evaluates a run and writes its report."""
    parser = _parser()
    options = parser.parse_args(list(arguments))
    require_at_least_one(options, "batch_size")
    folder = Path(options.run)
    (run, *others) = find_runs([folder])
    if others or run.path != folder:
        raise UsageError(
            f"{folder} is no run directory, but holds {len(others) + 1} of them; expected one, "
            f"such as {run.path}"
        )
    out = Path(options.out) if options.out else folder / "report.html"
    require_writable("--out", out)
    require_writable("--json", options.json)
    note = _reason_for_none(run, skipped=options.skip_evaluation)
    evaluation, shown = (None, {}) if note else _evaluate(folder, options)

    from distcnn.launching import record
    from distcnn.reporting.page import make_page

    restarts = record.read(folder)
    write_text(out, make_page(run, _environment(folder), restarts, note, **shown))
    if note:
        print(note)
    print(f"report: {printable(out)}")
    content = {"run": str(folder), "report": str(out), "summary": run.summary or None}
    write_json(options.json, content | {"evaluation": evaluation, "restarts": restarts})
    return 0


def _parser() -> Parser:
    parser = Parser("distcnn.report", "Writes a report on a run as one HTML file.")
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--out", help="HTML file to write. Default: report.html in the run.")
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        help="Split to evaluate on. Default: test, or validation if there are no test images.",
    )
    parser.add_argument("--batch_size", type=int, default=512, help="Images per step.")
    parser.add_argument(
        "--skip_evaluation",
        action="store_true",
        help="Report on the training only, as on a host that does not have the images.",
    )
    parser.add_argument("--json", help="JSON file for the results.")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="Run code that the model needs: the module of its model.factory, lambdas in its file.",
    )
    return parser


def _reason_for_none(run: RunRecord, *, skipped: bool) -> str:
    """Returns why a run is not evaluated; empty if it is."""
    if skipped:
        return "The run was not evaluated for this report (--skip_evaluation)."
    if run.settings.get("data.factory"):
        return (
            f"The run was trained on the data of {run.settings['data.factory']}, not on images of "
            "a data set, and is not evaluated here; its test results are in summary.json."
        )
    if not (run.path / "model.keras").exists():
        return "The run is not finished: it has no model.keras yet, which could be evaluated."
    return ""


def _evaluate(folder: Path, options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluates a run in detail; returns the results for JSON, and for the page."""
    found = data_of_run(folder)
    assert found is not None
    data, seed = found
    import_tensorflow()
    from distcnn.inference.details.details import make_details, scores_of
    from distcnn.inference.evaluation import Evaluator
    from distcnn.reporting.evaluation import Assessment, evaluation_sections, evaluation_tiles

    evaluator = Evaluator(folder, data, seed, options.batch_size, trust=options.trust)
    has_test = evaluator.source.test is not None
    split: SplitName = options.split or _default_split(data, has_test=has_test)
    result = evaluator.evaluate(split)
    details = make_details(evaluator, split, result)
    scores = scores_of(result)
    assessment = Assessment(split, result, details, scores)
    content = {"split": split, "images": len(result.labels)} | scores | details.as_dict()
    sections, tiles = evaluation_sections(assessment), evaluation_tiles(assessment)
    return content, {"evaluated": sections, "scores": tiles}


def _default_split(data: DataConfig, *, has_test: bool) -> "SplitName":
    if has_test:
        return "test"
    return "validation" if data.validation == "split" else "train"


def _environment(folder: Path) -> dict[str, Any]:
    file = folder / "environment.json"
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise DistcnnError(f"{file} is damaged: {error}; restore or delete it") from None
    return content


if __name__ == "__main__":
    run_command(main)
