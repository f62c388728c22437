import os

import pytest

from distcnn.runtime.text import decimals, printable, valid_unicode


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name.png", "plain name.png"),
        ("\x1b[2Jred\x07", "\\x1b[2Jred\\x07"),
        ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
        ("\x9b31m \x7f", "\\x9b31m \\x7f"),
        ("gpj.\u202etac \u2028", "gpj.\\u202etac \\u2028"),
        ("猫\u3000é 👨\u200d👩", "猫\u3000é 👨\u200d👩"),
        (os.fsdecode(b"caf\xe9\x1b"), os.fsdecode(b"caf\xe9") + "\\x1b"),
    ],
)
def test_only_controls_are_escaped(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


def test_small_numbers_keep_their_digits():
    shown = [decimals(value) for value in (0.0, 12.34567, -0.25, 3.21e-6, -4e-4)]
    assert shown == ["0.0000", "12.3457", "-0.2500", "3.2e-06", "-4.0e-04"]
    assert decimals(2.25, 1) == "2.2"
    assert decimals(float("nan")) == "nan"


def test_bytes_that_are_not_utf_8_are_replaced():
    assert valid_unicode(os.fsdecode(b"caf\xe9 \x80")) == "caf\ufffd \ufffd"
    assert valid_unicode("猫\x1b") == "猫\x1b"
