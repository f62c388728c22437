"""Text for terminals and documents: that of file names made safe, and times."""

import re

# Controls that a terminal obeys, separators that break a line, and marks that reorder a line.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_DATA_ERROR = re.compile(r"(?:DamagedFile|UndecodableImage)Error: (.*)")


def printable(text: object) -> str:
    r"""Returns text whose control characters are escaped, as `\x1b`, on one line.

    Bytes of a file name that are not UTF-8 (surrogate escapes) are kept, so that the standard
    output shows the true name. Escaping twice changes nothing.
    """
    return _CONTROLS.sub(lambda match: _escape(match[0]), str(text))


def wrapped_data_error(text: str) -> str | None:
    """Returns the message of an error of the data, which TensorFlow wraps into a traceback.

    Args:
        text: The message of TensorFlow's error.

    Returns:
        None if it wraps none.
    """
    found = _DATA_ERROR.search(text)
    return found[1] if found else None


def valid_unicode(text: str) -> str:
    """Returns text that can be encoded: bytes that are not UTF-8 become replacement characters."""
    return _SURROGATES.sub("\ufffd", text)


def decimals(value: float, digits: int = 4) -> str:
    """Returns a number with so many decimals; 2.5e-06 where these would show little but zeros.

    Errors of a model of numbers have the units of the numbers, and may be small.
    """
    return f"{value:.{digits}f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Returns a time as people read it: 0:42, or 1:02:03 with hours."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
