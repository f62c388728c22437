"""Location of the launch scripts."""

from pathlib import Path

LAUNCH_SCRIPTS = (Path(__file__).parent.parent / "launch").resolve()
"""The folder `launch` of the clone, or its copy in the installed package."""
