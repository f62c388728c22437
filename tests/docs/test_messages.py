"""The messages that the troubleshooting page quotes are those of the code."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import distcnn
from tests.docs.pages import ROOT

OF_OTHER_PROGRAMS = {"Connection refused", "Connect timeout [127.0.0.1]", "Stalled tensor"}

VALUE = "\0"
"""Stands for a value that the program puts into a message."""


def messages() -> Iterator[list[str]]:
    """Yields the words of every string of the package that has several, with `VALUE` in them."""
    for path in Path(distcnn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = _text(node)
            if " " in text:
                yield _words(text)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or VALUE for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:\(\w+\))?[-\d.]*[sdg]", VALUE, node.value)
    return ""


def quoted_messages(page: Path) -> list[str]:
    """Returns the code spans of a page's tables that are messages, not commands or settings."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    spans = re.findall(r"`([^`]+)`", "\n".join(rows))
    return [
        span for span in spans if " " in span and "=" not in span and not re.search("^-| -", span)
    ]


def says(message: list[str], quotation: str) -> bool:
    """Returns whether a quotation is a part of a message; two thirds of it may be values."""
    words = _words(quotation)
    most = 2 * len(words) / 3
    if sum(word in message for word in words) < len(words) - most:
        return False
    return any(_values(message[start:], words) <= most for start in range(len(message)))


def _values(message: list[str], words: list[str]) -> float:
    """Returns how many of the words are values in a beginning of a message; infinity for another.

    A value may have up to five words.
    """
    if not words:
        return 0
    if not message:
        return math.inf
    if VALUE in message[0]:
        lengths = range(1, min(5, len(words)) + 1)
        return min(length + _values(message[1:], words[length:]) for length in lengths)
    return _values(message[1:], words[1:]) if message[0] == words[0] else math.inf


def _words(text: str) -> list[str]:
    """Splits a text into its words, without the punctuation behind them."""
    return [word.rstrip(",.:;") or word for word in text.split()]


@pytest.mark.parametrize("quotation", quoted_messages(ROOT / "docs" / "troubleshooting.md"))
def test_a_quoted_message_is_one_of_the_code(quotation):
    if quotation not in OF_OTHER_PROGRAMS:
        assert any(says(message, quotation) for message in messages()), quotation


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("was started with a global batch of 64 images, but this run would use 32", True),
        ("a global batch of 64 images", True),
        ("was begun with a global batch of 64 images, but this run would use 32", False),
        ("64 images in the batch", False),
    ],
)
def test_quotations_are_compared_word_by_word(quotation, found):
    message = f"{VALUE} was started with a global batch of {VALUE} images, but this run would use "
    assert says(_words(f"{message}{VALUE}; {VALUE}"), quotation) == found
