"""The command `python -m distcnn.search`: looks for the best settings of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from distcnn.cli.command import EXIT_STOPPED, require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser, parse_config
from distcnn.errors import UsageError
from distcnn.runtime.extras import require_extra
from distcnn.runtime.files import write_text
from distcnn.runtime.text import printable
from distcnn.searching.space import Space, read_space

if TYPE_CHECKING:
    from distcnn.searching.search import Search

_OWN = (
    *("--space", "--trials", "--jobs", "--workers", "--metric", "--pruner", "--seed", "--out"),
    *("--json", "--recipe"),
)
_MANAGED = ("--checkpoint.resume", "--logging.progress", "--print-config")


def main(arguments: Sequence[str]) -> int:
    """Runs trials and writes tables, pictures and the best trial as a recipe.

    Returns:
        The exit code: 0 when all trials are done, 75 when a signal stopped the search.
    """
    own, flags = split_flags(arguments)
    options = _parser().parse_args(own)
    require_at_least_one(options, "trials", "jobs", "workers")
    require_writable("--json", options.json)
    if options.space is None:
        raise UsageError("--space is missing; expected a YAML file of what to vary")
    space = read_space(Path(options.space))
    _require_valid(options.recipe, flags, space)
    require_extra("distcnn.search", "search", ["optuna"])
    from distcnn.searching.search import Search  # imported late: the extra may be missing

    folder = Path(options.out or Path("runs", f"search-{Path(options.recipe).stem}"))
    search = Search(folder, _plan(options, flags, space), space, options.jobs)
    try:
        finished = search.run(options.trials)
        _report(search, options.json)
    finally:
        search.close()
    return 0 if finished else EXIT_STOPPED


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into our own flags and those of every trial."""
    own: list[str] = []
    flags: list[str] = []
    taken = own
    for argument in arguments:
        if argument.startswith("-"):
            name = argument.partition("=")[0]
            taken = own if name in (*_OWN, "-h", "--help", "--debug") else flags
            if name in _MANAGED:
                raise UsageError(f"{name} does not apply to the trials of a search; drop it")
        taken.append(argument)
    return own, flags


def _parser() -> Parser:
    parser = Parser(
        "distcnn.search",
        "Looks for the best settings of a recipe: each trial is a run of distcnn.train. Flags of "
        "distcnn.train apply to every trial.",
    )
    parser.add_argument("--recipe", default="article", help="Recipe that every trial starts from.")
    parser.add_argument(
        "--space",
        metavar="FILE",
        help="YAML file of what to vary: keys with a list of values, or with {low, high} and maybe "
        "log: true or step.",
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="Trials in all, those of an earlier call included."
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="Trials side by side, each on its part of the cores and GPUs.",
    )
    parser.add_argument("--workers", type=int, default=1, help="Workers of each trial.")
    parser.add_argument(
        "--metric",
        default="val_accuracy",
        help="What is compared: val_accuracy, val_loss, or another value of summary.json. The "
        "least is best if its name holds loss, else the greatest.",
    )
    parser.add_argument(
        "--pruner",
        choices=("median", "asha", "none"),
        default="median",
        help="What stops trials that lag behind: median (worse than the median of the others after "
        "the same epoch), asha (successive halving), or none.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the suggestions.")
    parser.add_argument(
        "--out",
        help="Folder of the search. Default: runs/search-RECIPE. An unfinished search there goes "
        "on, a finished one gets more trials.",
    )
    parser.add_argument("--json", help="JSON file for the results.")
    return parser


def _plan(options: Any, flags: list[str], space: Space) -> Any:
    from distcnn.searching.search import Plan
    from distcnn.searching.slots import divide_host

    given = any(flag.startswith("--precision.threads") for flag in flags)
    fixed = given or "precision.threads" in space or options.jobs == 1
    cores = len(divide_host(options.jobs, options.workers)[0].cores)
    return Plan(
        recipe=options.recipe,
        flags=flags,
        space={key: vars(setting) for key, setting in space.items()},
        metric=options.metric,
        pruner=options.pruner,
        seed=options.seed,
        workers=options.workers,
        threads=None if fixed else max(1, cores // options.workers),
    )


def _require_valid(recipe: str, flags: list[str], space: Space) -> None:
    """Checks the flags of the trials, and the bounds of each range and each choice.

    Raises:
        UsageError: If a configuration refuses one of them.
    """
    from distcnn.searching.search import flags_of

    start = ["--recipe", recipe, *flags]
    given = {flag.partition("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    both = sorted(given & set(space))
    if both:
        raise UsageError(f"{both[0]} is a flag and in the space too; drop one of them")
    middle = {key: setting.samples[0] for key, setting in space.items()}
    for key, setting in space.items():
        for value in setting.samples:
            settings = middle | {key: value}
            parse_config("distcnn.search", "", [*start, *flags_of(settings)])


def _report(search: "Search", json_file: str | None) -> None:
    from distcnn.searching.report import (
        history_figure,
        importance_figure,
        page,
        table_of,
        to_png,
    )

    study, metric = search.study, search.plan.metric
    rows = study.rows()
    head, lines = table_of(rows, minimises=study.minimises)
    _print_table(head, lines)
    importances = study.importances()
    if importances:
        parts = (f"{key} {value:.2f}" for key, value in importances.items())
        print(f"importances: {'  '.join(parts)}")
    folder = search.folder
    pictures = []
    if any(row.value is not None for row in rows):
        pictures.append(to_png(history_figure(rows, metric, minimises=study.minimises)))
        logarithmic = [key for key, setting in search.plan.space.items() if setting.get("log")]
        pictures.append(to_png(importance_figure(importances, rows, metric, logarithmic)))
        for name, picture in zip(("history.png", "importances.png"), pictures, strict=True):
            (folder / name).write_bytes(picture)
    recipe, best = search.write_best(), study.best()
    lead = f"{len(rows)} trials of the recipe {search.plan.recipe}, by {metric}."
    if best is not None:
        lead += f" Best: {best.value:.4f} by trial {best.number}."
    write_text(folder / "search.html", page(f"Search: {folder.name}", lead, pictures, head, lines))
    if best is not None:
        print(f"best: trial {best.number}, {metric} {best.value:.4f}; recipe: {printable(recipe)}")
    print(f"report: {printable(folder / 'search.html')}")
    write_json(
        json_file,
        {
            "metric": metric,
            "best": None if best is None else best.number,
            "importances": importances,
            "trials": [vars(row) for row in rows],
        },
    )


def _print_table(head: list[str], lines: list[list[str]]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    table = Table(*head)
    for column in table.columns[2:5]:
        column.justify = "right"
    for line in lines:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    run_command(main)
