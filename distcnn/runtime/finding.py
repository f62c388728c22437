"""What the doctor found out about one part of the system."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: What was checked.
        level: `ok`, `warning` (training works, but not as well as it could) or `error` (it would
            not work).
        text: What was found.
        fix: What to do about it; empty if there is nothing to do.
    """

    subject: str
    level: Level
    text: str
    fix: str = ""
