"""Where the launch scripts are."""

from pathlib import Path

LAUNCH_SCRIPTS = (Path(__file__).parent.parent / "launch").resolve()
"""The folder `launch` of the clone, or its copy in an installed package."""
