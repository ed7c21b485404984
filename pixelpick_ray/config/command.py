"""What a user types to call this program, for hints."""

import sys
from pathlib import Path


def typed() -> str:
    """``python launch.py`` in a checkout, ``python -m pixelpick_ray`` where that was typed, else ``pixelpick-ray``."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return {"launch.py": "python launch.py", "__main__.py": "python -m pixelpick_ray"}.get(name, "pixelpick-ray")
