"""Lossless decoding of image and label files; other files are rejected with what they really are."""

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pixelpick_ray.errors import DataError, SpecError

UInt8Array = npt.NDArray[np.uint8]
ORIENTATION = 0x0112  # EXIF tag
# Pillow runs external programs for some other formats, and JPEG and WebP may change the values of label maps.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
DEEP = ";16"  # 16 bits per channel, in Pillow's raw modes
_RED_GREEN_BLUE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are reported with the file's name


Image.MAX_IMAGE_PIXELS = None  # `opened` has its own limit, with advice
MAX_PIXELS = "PIXELPICK_MAX_PIXELS"


def max_pixels() -> int:
    """The largest accepted number of pixels in an image: PIXELPICK_MAX_PIXELS (SpecError if invalid) or 250 million."""
    given = os.environ.get(MAX_PIXELS, "250000000")
    if not re.fullmatch(r"[1-9][0-9]{0,11}", given):
        raise SpecError(f"{MAX_PIXELS}: {given!r} is not a number of pixels; give one, e.g. 250000000")
    return int(given)


@dataclass(frozen=True)
class LabelFile:
    """The content of a label file: `values` (H, W), `colours` (H, W) as packed RGB, or both if ambiguous.

    With a palette, `values` are indices into `palette`, (n,) packed colours. Grey of fewer than eight `bits` may mean
    its raw values, as in `values`, or its brightness.
    """

    values: npt.NDArray[np.integer] | None
    colours: npt.NDArray[np.int32] | None = None
    palette: npt.NDArray[np.int32] | None = None
    bits: int = 8


def packed(colour: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Pack 8-bit RGB colours (..., 3) into integers (...), 0xRRGGBB."""
    red, green, blue = np.moveaxis(np.asarray(colour, dtype=np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, dtype=np.int32)


def read_image(path: Path, *, label_size: tuple[int, int] | None = None, white: int | None = None) -> UInt8Array:
    """Decode a file to 8-bit RGB (H, W, 3); `white` is the value of white in 16-bit files.

    EXIF orientation is applied if there is no label map, or if `label_size` (height, width) matches the rotated image
    only. Raises DataError for a missing or damaged file, and for an ambiguous one.
    """
    with opened(path, IMAGE_FORMATS) as image:
        _check_channels(image, path)
        is_deep = DEEP in _raw_mode(image)
        turn = _turn(_exif(image, path), (image.height, image.width), label_size, path)
        if is_deep:
            pixels = _of_16_bits(path, white)
        else:
            # OpenCV premultiplies alpha in TIFF, and converts CMYK differently.
            plain = image.mode in ("RGB", "L", "P", "1") or image.format in ("PNG", "WEBP", "BMP")
            decoded = cv2.imdecode(_bytes(path), _RED_GREEN_BLUE) if plain else None
            # If OpenCV fails, Pillow's error tells why.
            pixels = np.asarray(image.convert("RGB") if decoded is None else decoded, dtype=np.uint8)
    return np.ascontiguousarray(_turned(pixels, turn))


def read_size(path: Path, label_path: Path | None = None) -> tuple[int, int]:
    """(height, width) of `read_image`'s result, from file headers alone; DataError for problems visible there."""
    with opened(path, IMAGE_FORMATS) as image:
        _check_channels(image, path)
        exif = _exif(image, path)
        size = image.height, image.width
        label_size = None
        if label_path is not None and _orientation(exif):
            with opened(label_path, LABEL_FORMATS) as label:
                label_size = label.height, label.width
        return size[::-1] if _turn(exif, size, label_size, path) > 4 else size


def read_label_file(path: Path) -> LabelFile:
    """Read a label file without interpreting its values.

    Raises DataError for a missing or damaged file, an EXIF orientation, transparency, several pages, or 16-bit colours.
    """
    with opened(path, LABEL_FORMATS) as image:
        raw = _raw_mode(image)
        _check_tiff(image, path)
        if turn := _orientation(_exif(image, path)):
            raise DataError(
                f"{path}: its EXIF orientation {turn} rotates or mirrors the label map in viewers; save it upright "
                "without that tag, and check that it matches its image"
            )
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"{path}: has {pages} pages, but a label map must have one; save it separately")
        if image.mode == "P":
            colours = packed(np.asarray(image.getpalette("RGB"), dtype=np.int32).reshape(-1, 3))
            return LabelFile(np.asarray(image), palette=colours)
        small = re.search(r";([24])\b", raw)
        if image.mode == "1" or (image.mode == "L" and small):
            bits = int(small[1]) if small else 1
            levels = np.asarray(image.convert("L"))
            return LabelFile(levels // (255 // (2**bits - 1)), bits=bits)
        if image.mode == "L":
            return LabelFile(np.asarray(image))
        if image.mode.startswith("I"):
            return LabelFile(np.asarray(image).astype(np.int32))
        if image.mode in ("LA", "RGB", "RGBA"):
            deep = DEEP in raw
            pixels = _unchanged(path) if deep else np.asarray(image)
            return _of_channels(np.asarray(pixels), 65535 if deep else 255, path)
        raise DataError(
            f"{path}: unsupported mode {image.mode} for a label map; convert it to one channel, a palette or RGB"
        )


def check_whole(path: Path) -> None:
    """Raise DataError for a dangling symbolic link."""
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        fetch = "git annex get" if "annex/objects" in target else "dvc pull" if ".dvc" in target else ""
        remedy = f"fetch it, e.g. with `{fetch}`" if fetch else "copy the file itself there"
        raise DataError(f"{path}: is a link to {target}, which does not exist; {remedy}")


@contextlib.contextmanager
def opened(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels; later errors within the context become DataErrors too."""
    try:
        check_whole(path)
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > max_pixels():
                raise DataError(
                    f"{path}: has {image.width} x {image.height} pixels, more than the limit of {max_pixels()}; "
                    "split it and its label map into tiles, or raise the limit with the environment variable "
                    f"{MAX_PIXELS}"
                )
            yield image
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it must be a file readable by the current user"
        ) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        what = _what_it_is(path, formats) if isinstance(error, UnidentifiedImageError) else None
        raise DataError(f"{path}: {what or _damaged(error, formats)}") from error


def _damaged(error: Exception, formats: tuple[str, ...]) -> str:
    return (
        f"cannot be decoded ({error}); the file is damaged or truncated, copy it again; supported formats: "
        f"{', '.join(formats)}"
    )


# Patterns at the beginning of other files: what they are, and what to do.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository and copy it again",
    ),
    (
        rb"(?:\.\./)*(?:\.git)?/annex/objects",
        "is a git-annex pointer, not the file itself; run `git annex get` in its repository and copy it again",
    ),
    (
        rb"(?:wdir:.*\n|md5:.*\n)*outs:\s",
        "is a DVC pointer, not the file itself; run `dvc pull` in its repository and copy it again",
    ),
    (
        rb"(?i)<(?:!doctype html|html|head)",
        "is a web page, probably from a failed download or a missing login; download it again",
    ),
    (rb"(?i)<svg|<\?xml", "is XML or SVG, not a raster image; save it as PNG"),
    (rb"[\[{]", "is JSON, as annotation tools write next to masks; give the image or mask itself, e.g. as PNG"),
    (rb"GIF8", "is a GIF, which is not supported; save it as PNG"),
    (rb"(?s)....ftyp(?:hei|hev|mif|msf)", "is an HEIC photo, which is not supported; save it as JPEG or PNG"),
    (rb"(?s)....ftypavi", "is an AVIF image, which is not supported; save it as JPEG or PNG"),
    (rb"(?s)\0\0\0\x0cjP  |\xff\x4f\xff\x51", "is a JPEG 2000 image, which is not supported; save it as PNG"),
    (rb"(?s)\xff\x0a|\0\0\0\x0cJXL ", "is a JPEG XL image, which is not supported; save it as JPEG or PNG"),
    (rb"8BPS", "is a Photoshop document, which is not supported; save it as PNG"),
    (rb"%PDF|%!PS", "is a PDF or PostScript document, not a raster image; save it as PNG"),
    (rb"\x93NUMPY", "is a NumPy array, which is not supported; save it as PNG"),
    (rb"(?s).{128}DICM", "is a DICOM file, which is not supported; save it as PNG"),
    (rb"\x76\x2f\x31\x01", "is an OpenEXR image, which is not supported; save it as PNG"),
    (rb"P[1-6][\s#]", "is a PBM, PGM or PPM image, which is not supported; save it as PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "is an archive; unpack it"),
)
_TIFF = rb"(?s)II[*+]\0|MM\0[*+]"
_LOSSY = rb"(?s)\xff\xd8\xff|RIFF....WEBP"


def _what_it_is(path: Path, formats: tuple[str, ...]) -> str | None:
    """What a file in none of these formats is, with a remedy; None if it is missing or unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    if not head:
        return "is empty; copy it again"
    if len(head) >= 64 and not any(head):
        return "contains only zeros, e.g. after a full disk or an incomplete copy; copy it again"
    if formats == LABEL_FORMATS and re.match(_LOSSY, head):
        return (
            "is a JPEG or WebP image, which may alter label values; export the label map again as PNG (supported: "
            f"{', '.join(formats)})"
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, what in _OTHERS:
        if re.match(pattern, head) or re.match(pattern, text):
            return f"{what} (supported: {', '.join(formats)})"
    if re.match(_TIFF, head):
        return (
            "is a TIFF that is damaged or has an unsupported layout (multi-channel floating point, 32 bits, planar); "
            "convert it to 8 or 16 bits, grey or RGB, or copy it again"
        )
    if re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head):
        return f"is a text file, not an image: {head[:40].decode('ascii')!r}; copy the image itself there"
    return None


def _raw_mode(image: Image.Image) -> str:
    """Mode and Pillow raw mode of an image that is not decoded yet, such as ``RGB RGB;16B``."""
    tiles: Any = getattr(image, "tile", None)
    return f"{image.mode} {tiles[0][3] if tiles else ''}"


def _exif(image: Image.Image, path: Path) -> Image.Exif:
    """The EXIF data of a file. A PNG is searched first: its EXIF may follow the pixels, which Pillow would decode."""
    marks = (b"eXIf", b"Raw profile", b"XML:com.adobe")
    if image.format == "PNG":
        content = path.read_bytes()
        if not any(mark in content for mark in marks):
            return Image.Exif()
    return image.getexif()


def _orientation(exif: Image.Exif) -> int:
    """EXIF orientation 2..8 if viewers rotate or mirror the image, else 0."""
    found: Any = exif.get(ORIENTATION)
    return int(found) if found in range(2, 9) else 0


def _turn(exif: Image.Exif, size: tuple[int, int], label_size: tuple[int, int] | None, path: Path) -> int:
    """The orientation to apply, 0 for none. DataError if the label map may have been drawn in either orientation."""
    orientation = _orientation(exif)
    if not orientation or label_size is None or (orientation > 4 and label_size == size[::-1] != size):
        return orientation
    raise DataError(
        f"{path}: its EXIF orientation {orientation} rotates or mirrors it in viewers, and the size of its label "
        f"map ({label_size[0]}x{label_size[1]}, height x width) does not tell which version was "
        "labelled; save the image upright without that tag, and check that its label map matches"
    )


def _turned(pixels: UInt8Array, orientation: int) -> UInt8Array:
    """The image as viewers show it (EXIF 2.32, tag Orientation)."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    down = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if right else 1]


def _check_channels(image: Image.Image, path: Path) -> None:
    if image.mode in ("F", "I"):
        raise DataError(
            f"{path}: unsupported mode {image.mode} (32 bits or signed); convert it to 8 or 16 bits per channel"
        )
    _check_tiff(image, path)
    if image.format in ("TIFF", "WEBP") and (pages := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{path}: has {pages} pages; save each as a separate image")


def _check_tiff(image: Image.Image, path: Path) -> None:
    """Raise DataError for a TIFF with an orientation, which readers treat differently."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and tags.get(ORIENTATION, 1) != 1:
        raise DataError(
            f"{path}: its orientation tag {tags[ORIENTATION]} rotates or mirrors it; save it upright without that tag"
        )


def _bytes(path: Path) -> UInt8Array:
    return np.fromfile(path, dtype=np.uint8)


def _unchanged(path: Path) -> npt.NDArray[Any]:
    """All channels of a file at full depth, in OpenCV's BGR order."""
    pixels = cv2.imdecode(_bytes(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("its pixels are damaged")
    return np.asarray(pixels, dtype=pixels.dtype)


def _of_16_bits(path: Path, white: int | None) -> UInt8Array:
    """8-bit RGB (H, W, 3) of a file with 16 bits per channel, scaled so that `white` becomes 255, rounded half up."""
    pixels = _unchanged(path)
    if pixels.dtype != np.uint16:
        raise DataError(f"{path}: has {pixels.dtype} channels; convert it to unsigned 8 or 16 bits")
    channels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3][..., ::-1]
    largest = int(channels.max(initial=0))
    if white is None:
        likely = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
        raise DataError(
            f"{path}: has 16 bits per channel with values up to {largest}; give the value of white in dataset.yaml, "
            f"e.g. `range: {likely}`, or convert it to 8 bits"
        )
    if largest > white:
        raise DataError(
            f"{path}: contains the value {largest}, above white in dataset.yaml (range: {white}); raise it, e.g. to "
            f"{next(2**bits - 1 for bits in (10, 12, 14, 16) if largest < 2**bits)}"
        )
    scaled = (channels.astype(np.uint32) * 255 + white // 2) // white
    return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)), dtype=np.uint8)


def _of_channels(pixels: npt.NDArray[np.integer], opaque: int, path: Path) -> LabelFile:
    """A label file from two to four channels (H, W, C); the last of two or four is alpha."""
    if pixels.shape[-1] in (2, 4):
        if clear := int((pixels[..., -1] != opaque).sum()):
            raise DataError(
                f"{path}: {clear} transparent pixels may mean void or a class; save the label map without "
                "transparency, giving them a value or colour"
            )
        pixels = pixels[..., :-1]
    are_equal = bool((pixels == pixels[..., :1]).all())
    if opaque > 255 and not are_equal:
        raise DataError(f"{path}: has 16-bit colours; save the label map with 8 bits per channel")
    colours = packed(np.broadcast_to(pixels, (*pixels.shape[:2], 3))) if opaque == 255 else None
    return LabelFile(pixels[..., 0].astype(np.int32) if are_equal else None, colours)
