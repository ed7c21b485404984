"""Writing files for people, such as reports: all are replaced, or none."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from pixelpick_ray.store.backend import PARTIAL, process_stamp, remove_quietly, remove_stale


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write files and their parent folders, to temporary files first, so that a full disk destroys nothing.

    Targets that are not regular files, such as ``/dev/stdout``, are written to directly. Raises OSError with the path.
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
