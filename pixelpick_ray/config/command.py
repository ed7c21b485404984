"""The command that the user started this program with, for hints."""

import sys
from pathlib import Path


def typed() -> str:
    """``python launch.py`` or ``python -m pixelpick_ray`` if started so, else ``pixelpick-ray``."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return {"launch.py": "python launch.py", "__main__.py": "python -m pixelpick_ray"}.get(name, "pixelpick-ray")
