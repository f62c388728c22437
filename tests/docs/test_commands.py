"""What the documentation says: its flags exist, its examples run, its links lead somewhere."""

import ast
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distcnn.cli.parser import Parser, parse_config
from distcnn.errors import UsageError
from distcnn.launch import split_launched
from distcnn.search import split_flags
from tests.conftest import ROOT
from tests.docs.pages import PAGES, SITE, anchors, blocks, commands, inline_code, links, name_of

COMMANDS = (
    *("train", "run", "evaluate", "predict", "records", "benchmark", "doctor", "probe"),
    *("launch", "inspect", "search", "export", "runs", "report", "find_lr", "find_batch"),
)

NEEDED = {
    "inspect": ["DIR"],
    "run": ["script.py"],
    "evaluate": ["RUN"],
    "predict": ["RUN", "IMAGE"],
    "export": ["RUN"],
    "report": ["RUN"],
    "records": ["--out", "SHARDS"],
}
"""Arguments without which a command refuses every flag."""

FLAGS_OF_OTHERS = {
    *("--cuda", "--mpi", "--dry-run", "--hostfile", "--shm-size", "--gpus", "--net"),
    *("--only", "--list", "--data"),
}
"""Flags that the pages mention and that launch scripts and other programs take."""

FLAGS_WITHOUT_CONFIG = {
    "install-horovod": {"--cuda", "--mpi"},
    "launchers": set[str](),
    "horovodrun": set[str](),
}
"""Commands whose flags are not read here, with those that the pages may mention."""

PLACEHOLDER = "--section.key"

README_LINES = 150

Parse = Callable[[str, Sequence[str]], None]

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
every_command = pytest.mark.parametrize(
    ("command", "arguments"),
    [
        pytest.param(*found, id=f"{name_of(page)}: {found[0]} {' '.join(found[1])}")
        for page in PAGES
        for found in commands(page)
    ],
)


class AcceptedError(Exception):
    """The command line was parsed, and the command goes no further."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Parses the command line of a command as the command does; a `UsageError` if it is wrong."""

    def run(command: str, arguments: Sequence[str]) -> None:
        if command == "train":
            parse_config("distcnn.train", "", arguments)
            return
        module = importlib.import_module(f"distcnn.{command}")
        of_run = command in ("benchmark", "find_lr", "find_batch")
        target, name = (module, "parse_run") if of_run else (Parser, "parse_args")
        original = getattr(target, name)

        def then_stop(*positional: Any, **keywords: Any) -> NoReturn:
            original(*positional, **keywords)
            raise AcceptedError

        with monkeypatch.context() as patch:
            patch.setattr(target, name, then_stop)
            with pytest.raises(AcceptedError):
                module.main(list(arguments))
        if command == "launch":
            words = split_launched(arguments)[1]
            if words:
                run(words[0], words[1:])
        if command == "search":
            run("train", split_flags(arguments)[1])

    return run


def write_files(folder: Path = Path()) -> None:
    """Writes the files that the pages show in blocks marked `<!-- file NAME -->`."""
    for page in PAGES:
        for block in blocks(page):
            kind, _, name = block.mark.partition(" ")
            if kind == "file":
                (folder / name).write_text(block.text, encoding="utf-8")


@every_command
def test_the_flags_of_every_command_exist(command, arguments, parse):
    command = command if command in FLAGS_WITHOUT_CONFIG else command.replace("-", "_")
    if command in FLAGS_WITHOUT_CONFIG:
        assert set(arguments) <= FLAGS_WITHOUT_CONFIG[command]
        return
    assert command in COMMANDS
    if not arguments:  # only named
        return
    write_files()
    run = Path("runs/quickstart")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("recipe: quickstart\n")
    parse(command, arguments)


@every_page
def test_the_flags_that_a_page_mentions_exist(page, parse):
    unknown = []
    for span in inline_code(page):
        flag = re.split("[ =]", span)[0]
        if not flag.startswith("--") or flag in {*FLAGS_OF_OTHERS, PLACEHOLDER}:
            continue
        arguments = [text for text in shlex.split(span) if text != "..."]
        problem = _problem_everywhere(parse, arguments)
        if problem:
            unknown.append((span, problem))
    assert not unknown


def _problem_everywhere(parse: Parse, arguments: Sequence[str]) -> str:
    """Returns why no command takes a flag, empty if one does."""
    problems = []
    for command in COMMANDS:
        problem = _problem(parse, command, arguments)
        if not problem:
            return ""
        problems.append(problem)
    return problems[0]


def _problem(parse: Parse, command: str, arguments: Sequence[str]) -> str:
    """Returns why a command does not take a flag, empty if it takes it or only lacks its value."""
    if arguments == ["--help"]:
        return ""
    Path("runs/quickstart").mkdir(parents=True, exist_ok=True)
    Path("runs/quickstart/config.yaml").write_text("recipe: quickstart\n")
    try:
        parse(command, [*NEEDED.get(command, []), *arguments])
    except UsageError as error:
        lacks_value = len(arguments) == 1 and str(error).endswith("expected one argument")
        return "" if lacks_value else str(error)
    return ""


@every_page
def test_code_blocks_say_what_they_are(page):
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page)), "a fence is indented or not closed"
    for block in blocks(page):
        assert block.language in ("bash", "console", "python", "yaml", "text"), block.text
        assert re.fullmatch(r"|run|file [\w.]+", block.mark), block.mark
        if block.language == "python":
            ast.parse(block.text)


MARKED = [page for page in PAGES if any(block.mark == "run" for block in blocks(page))]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[None]]]:
    """Runs the marked blocks of every page; two pages at a time, as one leaves a core idle."""
    folders = {page: tmp_path_factory.mktemp(page.stem) for page in MARKED}
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    with ThreadPoolExecutor(2) as executor:
        yield {
            page: executor.submit(run_marked, page, folder, environment)
            for page, folder in folders.items()
        }


@pytest.mark.parametrize("page", MARKED, ids=name_of)
def test_marked_examples_run(page, examples):
    examples[page].result()


def run_marked(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Runs the marked blocks of a page in a folder with the files that the pages show."""
    write_files(folder)
    environment = {**environment, "XDG_CACHE_HOME": str(folder / "cache")}
    marked = [block for block in blocks(page) if block.mark == "run"]
    # Blocks of one language share a process, as importing TensorFlow takes seconds.
    for language, group in itertools.groupby(marked, lambda block: block.language):
        assert language in ("bash", "python")
        command = ["bash", "-eu"] if language == "bash" else ["python", "-"]
        text = "\n".join(block.text for block in group)
        done = subprocess.run(
            command,
            input=text,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@every_page
def test_links_lead_somewhere(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if page in SITE:
            assert path.is_relative_to(ROOT / "docs"), f"{link} is not part of the site"
        if anchor:
            assert anchor in anchors(path), link


def test_every_page_is_reached_from_the_readme():
    readme = ROOT / "README.md"
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(readme)}
    assert set(SITE) - {ROOT / "docs/index.md"} <= reached


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_commands_are_found_wherever_they_are_written():
    found = [command for page in PAGES for command, arguments in commands(page) if arguments]
    assert {"train", "evaluate", "predict", "records", "benchmark", "doctor"} <= set(found)
    assert len(found) > 30
