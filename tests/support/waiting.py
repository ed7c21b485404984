"""Waiting for other processes and threads."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def wait_for(look: Callable[[], Any], seconds: float = 240.0) -> Any:
    """What `look` finds as soon as it finds something; as long as it raises an OSError, that is nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if found := look():
                return found
        time.sleep(0.01)
    raise AssertionError(f"nothing came within {seconds:g} seconds")
