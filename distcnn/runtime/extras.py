"""Optional packages, which the extras of this package install."""

import importlib.util
from collections.abc import Iterable

from distcnn.errors import UsageError


def require_extra(what: str, extra: str, modules: Iterable[str]) -> None:
    """Checks that optional packages are installed, without importing them.

    Args:
        what: What needs them, for the message.
        extra: The extra that installs them.
        modules: Their modules.

    Raises:
        UsageError: If one is missing; it names the extra.
    """
    missing = [each for each in modules if importlib.util.find_spec(each) is None]
    if missing:
        error = UsageError(
            f"{what} needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not "
            f'installed; pip install "distcnn[{extra}]"'
        )
        error.on_every_rank = True
        raise error
