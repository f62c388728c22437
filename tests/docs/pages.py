"""What the documentation says: its code blocks, its inline code, its links and its commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

SITE = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *SITE]

LAUNCHERS = {
    "local.sh": "train",
    "multi_gpu.sh": "train",
    "multi_node.sh": "train",
    "slurm.sbatch": "train",
    "benchmark.sh": "benchmark",
    "install_horovod.sh": "install-horovod",
}
"""Launch scripts that pass their arguments on, and the command that gets them."""

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PLACEHOLDER = re.compile(r"\.\.\.$|^[A-Z]+\.\.\.$")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: What stands behind the fence.
        text: What is inside.
        mark: What the HTML comment on the line before the fence says, empty if there is none.
    """

    language: str
    text: str
    mark: str


def name_of(page: Path) -> str:
    """Returns the path of a page within the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Returns the code blocks of a page in order."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["mark"] or "") for match in found]


def inline_code(page: Path) -> list[str]:
    """Returns the code spans outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Returns the targets of the page's links and images, without those to the web."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"", text)
    flat = [markdown or html for markdown, html in targets]
    return [target for target in flat if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MkDocs both name simple ones."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Returns distcnn's commands on a page: the name of each, and its arguments."""
    lines = inline_code(page)
    for block in blocks(page):
        text = block.text.replace("\\\n", " ")
        if block.language == "bash":
            lines += text.splitlines()
        elif block.language == "console":
            lines += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    found = [command for line in lines for command in _commands_in(line)]
    return [(name, arguments) for name, arguments in found if name != "NAME"]


def _commands_in(line: str) -> Iterator[tuple[str, list[str]]]:
    if "distcnn" not in line and "launch/" not in line:
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("&|;()"):
            yield from _parse(command)
            command = []
        else:
            command.append(token)


def _parse(command: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Finds the command of distcnn in one simple command, behind a launcher or a script or not."""
    for position, token in enumerate(command):
        rest = [text for text in command[position + 1 :] if not _PLACEHOLDER.search(text)]
        if rest and rest[0].endswith("horovodrun") and "-m" in rest:
            continue  # it starts another command
        if token == "-m" and rest and rest[0].startswith("distcnn."):
            yield rest[0].removeprefix("distcnn."), rest[1:]
        elif token == "distcnn" and position == 0 and rest:
            yield rest[0], rest[1:]
        elif "launch/" in token and Path(token).name in LAUNCHERS:
            is_script = any(argument.endswith(".py") for argument in rest)
            command_name = "run" if is_script else LAUNCHERS[Path(token).name]
            yield command_name, _without_script_flags(Path(token).name, rest)
        else:
            continue
        return


def _without_script_flags(script: str, arguments: list[str]) -> list[str]:
    """Drops the arguments that a launch script keeps for itself."""
    own = {"-H", "--hostfile"} if script == "multi_node.sh" else set()
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in own:
            next(rest, None)
        elif argument != "--dry-run":
            kept.append(argument)
    return kept
