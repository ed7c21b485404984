"""Pictures that say they have more pixels than anybody has memory for."""

import struct
import time
import zlib
from pathlib import Path

import pytest

from pixelpick_ray.data.image_files import read_image, read_label_file, read_size
from pixelpick_ray.errors import DataError, SpecError


def png(path: Path, width: int, height: int) -> Path:
    """The header of a PNG and hardly any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))))
    return path


def bmp(path: Path, width: int, height: int) -> Path:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(header), 0, 0, 54) + header)
    return path


@pytest.mark.parametrize("read", [read_image, read_size, read_label_file])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.process_time()
    for path in (png(tmp_path / "a.png", 50_000, 5_001), bmp(tmp_path / "a.bmp", 50_000, 5_001)):
        told = rf"{path}: has 50000 x 5001 pixels, 250000000 at most are read; .*PIXELPICK_MAX_PIXELS"
        with pytest.raises(DataError, match=told):
            read(path)  # type: ignore[operator]
    assert time.process_time() - start < 2
    small = png(tmp_path / "b.png", 9, 9)
    assert read_size(small) == (9, 9)
    monkeypatch.setenv("PIXELPICK_MAX_PIXELS", "80")
    with pytest.raises(DataError, match="9 x 9 pixels, 80 at most"):
        read(small)  # type: ignore[operator]
    monkeypatch.setenv("PIXELPICK_MAX_PIXELS", "many")
    with pytest.raises(SpecError, match=r"PIXELPICK_MAX_PIXELS: 'many' is no number of pixels"):
        read(small)  # type: ignore[operator]
