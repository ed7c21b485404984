"""Files that are written for people, such as a report: all of them replaced whole, or none touched."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from pixelpick_ray.store.backend import PARTIAL, process_stamp, remove_quietly, remove_stale


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write files and the folders that they lie in: beside the targets first, so that a full disk destroys nothing.

    What is no regular file, such as ``/dev/stdout``, is written into. OSError with the path when it cannot be done.
    """
    ready: list[tuple[Path, Path]] = []
    try:
        for path, content in files.items():
            target = Path(os.path.realpath(path))
            if target.exists() and not target.is_file():
                target.write_bytes(content)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(target.parent, PARTIAL)
            partial = target.parent / f"{PARTIAL}{target.name[:16]}-{process_stamp()}-{secrets.token_hex(4)}"
            ready.append((partial, target))
            partial.write_bytes(content)
            if target.exists():
                with contextlib.suppress(OSError):
                    shutil.copymode(target, partial)
        for partial, target in ready:
            partial.replace(target)
    finally:
        for partial, _ in ready:
            remove_quietly(partial)
