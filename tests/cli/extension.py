"""A command from outside the package."""

import sys
from collections.abc import Sequence

from distcnn.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser("tests.cli.extension", "Greets.")
    parser.add_argument("--name", default="you")
    options = parser.parse_args(list(arguments))
    print(f"{sys.argv[0]}: hello {options.name}")
    return 7
