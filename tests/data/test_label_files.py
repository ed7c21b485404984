"""Label files and images as people have them: read as they mean, against numbers put down by hand, or refused."""

import io
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pixelpick_ray.data.dataset import FileDataset
from pixelpick_ray.data.image_files import ORIENTATION, read_image, read_label_file, read_size
from pixelpick_ray.errors import DataError, SpecError
from tests.support.data_folders import UInt8, noise, opened, save, write_folder
from tests.support.experiments import WRONG

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
COLOURS = {"soil": RED, "stem": GREEN, "leaf": BLUE, "void": WHITE}
MEANT = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8).repeat(5, axis=0).repeat(4, axis=1)


def dataset(data: Path, **description: Any) -> FileDataset:
    write_folder(data, **description)
    found = opened("folder", data, path="leaves")
    assert isinstance(found, FileDataset)
    return found


def labels(data: Path) -> Path:
    return data / "leaves" / "train" / "labels" / "leaf.v0.png"


def with_palette(indices: UInt8, colours: Sequence[Sequence[int]], path: Path) -> None:
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)


def coloured(meant: UInt8) -> UInt8:
    by_value = {0: RED, 1: GREEN, 2: BLUE, 255: WHITE}
    return np.array([[by_value[int(value)] for value in row] for row in meant], np.uint8)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)])
@pytest.mark.parametrize("given", ["colours", "palette"])
def test_the_colours_of_a_palette_win_over_its_indices(tmp_path: Path, order: tuple[int, ...], given: str) -> None:
    """As a program leaves it that makes PNGs smaller, or an image editor that reduces colours."""
    meant = MEANT if given == "colours" else MEANT % 255  # of void a palette says nothing
    said = {"colours": {name: list(colour) for name, colour in COLOURS.items()}}
    if given == "palette":
        said = {"palette": [list(COLOURS[name]) for name in ("soil", "stem", "leaf")]}
    described = dataset(tmp_path, **said)
    four = np.where(meant == 255, 3, meant)
    with_palette(np.argsort(order)[four].astype(np.uint8), [[*COLOURS.values()][at] for at in order], labels(tmp_path))
    assert (described.read_label(labels(tmp_path)) == meant).all()


def test_palettes_where_colours_are_known(tmp_path: Path) -> None:
    """A file made smaller is read by colour where void is an index; a palette for display alone does not count."""
    described = dataset(tmp_path, palette=[RED, GREEN, BLUE])
    with_palette(MEANT, [RED, GREEN, BLUE, *[WHITE] * 253], labels(tmp_path))
    assert (described.read_label(labels(tmp_path)) == MEANT).all()
    turned = np.array([2, 3, 0, 1], np.uint8)[np.where(MEANT == 255, 3, MEANT)]
    with_palette(turned, [BLUE, WHITE, RED, GREEN], labels(tmp_path))
    with pytest.raises(DataError, match=r"palette has unknown colours, \[255, 255, 255\] \(index 1\); known are"):
        described.read_label(labels(tmp_path))
    described = dataset(tmp_path, palette=[[0, 0, 0], [9, 9, 0], [0, 9, 9]])
    for colours in ([[at, at, at] for at in range(256)], [[0, 0, 0]] * 256, [[0, 0, 0], RED, GREEN, *[WHITE] * 253]):
        with_palette(MEANT, colours, labels(tmp_path))
        assert (described.read_label(labels(tmp_path)) == MEANT).all()


def test_palettes_where_no_colour_is_known(tmp_path: Path) -> None:
    """Those that differ from file to file, and greys in another order, are told; black and white is no void."""
    described, other = dataset(tmp_path), labels(tmp_path).with_name("leaf.v1.png")
    with_palette(MEANT % 255, [RED, GREEN, BLUE], labels(tmp_path))
    assert (described.read_label(labels(tmp_path)) == MEANT % 255).all()
    with_palette(MEANT % 255, [RED, BLUE, GREEN], other)
    with pytest.raises(DataError, match=r"leaf\.v1\.png: palette index 1 has the colour \[0, 0, 255\], but .* in .*v0"):
        described.read_label(other)
    with_palette(MEANT % 255, [(0, 0, 0), (2, 2, 2), (1, 1, 1)], labels(tmp_path))
    with pytest.raises(DataError, match=r"greys of its palette are also class values, .*index 1 is grey 2, index 2 is"):
        described.read_label(labels(tmp_path))
    described = dataset(tmp_path)
    with_palette(MEANT % 2, [(0, 0, 0), WHITE], labels(tmp_path))
    assert (described.read_label(labels(tmp_path)) == MEANT % 2).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_masks_are_read_by_colour_and_may_merge(tmp_path: Path, mode: str) -> None:
    two = {"soil": [RED, GREEN], "leaf": BLUE, "void": [WHITE, (9, 9, 9)]}
    described = dataset(tmp_path, classes=["soil", "leaf"], colours=two)
    pixels = coloured(MEANT)
    pixels[0, 0] = 9
    Image.fromarray(pixels).convert(mode).save(labels(tmp_path))
    expected = np.where(MEANT == 255, 255, MEANT // 2)
    expected[0, 0] = 255
    assert (described.read_label(labels(tmp_path)) == expected).all()
    pixels[3, 3] = (254, 0, 0)
    save(labels(tmp_path), pixels)
    with pytest.raises(DataError, match=r"unknown colours, \[254, 0, 0\] at 1 pixels; known are .*correct colours"):
        described.read_label(labels(tmp_path))


def test_a_blurred_colour_mask_is_told(tmp_path: Path) -> None:
    described, path = dataset(tmp_path, colours=COLOURS), labels(tmp_path)
    save(path, cv2.GaussianBlur(coloured(MEANT), (3, 3), 0))
    with pytest.raises(DataError, match=r"and \d+ more; .*blurred edges or JPEG"):
        described.read_label(path)


def test_ids_with_gaps_merged_classes_and_several_voids(tmp_path: Path) -> None:
    described = dataset(tmp_path, classes={"leaf": 7, "soil": [3, 200]}, void=[0, 1, 255])
    save(labels(tmp_path), np.array([[7, 3, 200], [0, 1, 255]], np.uint8))
    assert described.read_label(labels(tmp_path)).tolist() == [[0, 1, 1], [255, 255, 255]]
    assert (described.facts.class_names, described.facts.void_index) == (("leaf", "soil"), 255)
    save(labels(tmp_path), np.array([[7, 3], [0, 2]], np.uint8))
    with pytest.raises(DataError, match=r"label value 2 at \(y=1, x=1\); allowed are 3, 7, 200 and 0\.\.1, 255 \(void"):
        described.read_label(labels(tmp_path))
    save(labels(tmp_path), np.array([[1, 2], [3, 255]], np.uint8))
    with pytest.raises(DataError, match=r"label value 3 at .*; the file has no 0: if values start at 1, give cl"):
        dataset(tmp_path / "usual").read_label(labels(tmp_path))


@pytest.mark.parametrize(
    ("classes", "void", "values", "expected"),
    [
        ({"soil": 1, "leaf": 2}, 0, [[0, 1, 2]], [[255, 0, 1]]),  # void below the number of classes
        ({"soil": 0, "leaf": 255}, None, [[0, 255, 0]], [[0, 1, 0]]),  # no void where nothing is left for it
        ({"soil": 0, "leaf": 255}, [], [[0, 255, 0]], [[0, 1, 0]]),
        (["soil", "leaf"], [7, 9], [[0, 7, 9, 1]], [[0, 255, 255, 1]]),
        (["soil", "leaf"], 9, [[0, 9, 1]], [[0, 9, 1]]),
        ({"soil": 1000, "leaf": 40000}, 65535, [[1000, 40000, 65535]], [[0, 1, 255]]),
    ],
)
def test_numbers_of_every_depth(
    tmp_path: Path, classes: Any, void: Any, values: list[list[int]], expected: list[list[int]]
) -> None:
    described = dataset(tmp_path, classes=classes, **({} if void is None else {"void": void}))
    deep = np.array(values, np.uint16)
    files = [deep, np.dstack([deep] * 3), np.dstack([deep] * 3 + [np.full_like(deep, 65535)])]
    for pixels in files:
        for suffix in (".png", ".tif"):
            cv2.imwrite(str(path := labels(tmp_path).with_suffix(suffix)), pixels)
            assert described.read_label(path).tolist() == expected
    if deep.max() < 256:
        grey = Image.fromarray(deep.astype(np.uint8))
        for mode in ("L", "LA", "RGB", "RGBA"):
            grey.convert(mode).save(labels(tmp_path))
            assert described.read_label(labels(tmp_path)).tolist() == expected


def test_one_bit_is_0_and_1_or_black_and_white_as_the_classes_say_and_odd_channels_are_told(tmp_path: Path) -> None:
    bits = np.array([[0, 1, 1], [1, 0, 0]], bool)
    for classes in (["soil", "leaf"], {"soil": 0, "leaf": 255}, {"soil": 0, "leaf": 1}):
        described = dataset(tmp_path, classes=classes)
        Image.fromarray(bits).save(labels(tmp_path))
        assert (described.read_label(labels(tmp_path)) == bits).all()
    clear = np.zeros((4, 5, 4), np.uint8)
    clear[:2, :, 3] = 255
    save(labels(tmp_path), clear)
    with pytest.raises(DataError, match=r"10 transparent pixels may mean void or a class"):
        described.read_label(labels(tmp_path))
    cv2.imwrite(str(labels(tmp_path)), np.arange(60, dtype=np.uint16).reshape(4, 5, 3))
    with pytest.raises(DataError, match="has 16-bit colours; save the label map with 8 bits per channel"):
        described.read_label(labels(tmp_path))


@pytest.mark.parametrize(("value", "other"), [(128, 0), (2, 255)])
def test_a_mask_of_two_values_is_told_how_to_say_which_is_the_object(tmp_path: Path, value: int, other: int) -> None:
    described = dataset(tmp_path, classes=["background", "leaf"])
    save(labels(tmp_path), np.array([[value, value], [0, other]], np.uint8))
    told = f"label value {value} at .*; if {value} marks the object, give classes as a mapping, .* and NAME: {value}"
    with pytest.raises(DataError, match=told):
        described.read_label(labels(tmp_path))


def test_images_of_16_bits_are_scaled_by_what_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 8, 9, 2047], [2048, 4090, 4095, 1000]], np.uint16)
    by_hand = [[0, 0, 1, 127], [128, 255, 255, 62]]  # 8/4095 is 0.498 of 255, 9 is 0.56, 2047 is 127.47, 2048 is 127.53
    path = tmp_path / "deep.png"
    opaque = np.full_like(values, 65535)
    for name in ("deep.png", "deep.tif"):
        for pixels in (values, np.dstack([values] * 3), np.dstack([values] * 3 + [opaque])):
            cv2.imwrite(str(tmp_path / name), pixels)
            assert (read_image(tmp_path / name, white=4095) == np.array(by_hand)[..., None]).all()
    rgb = np.dstack([values, values // 2, values * 0])
    cv2.imwrite(str(path), rgb[..., ::-1])
    assert read_image(path, white=4095)[1, 2].tolist() == [255, 127, 0]
    with pytest.raises(DataError, match=r"has 16 bits per channel with values up to 4095; .*range: 4095"):
        read_image(path)
    with pytest.raises(DataError, match=r"contains the value 4095, above white in dataset\.yaml \(range: 1023\).*4095"):
        read_image(path, white=1023)
    assert read_size(path) == (2, 4)
    described = dataset(tmp_path, range=4095)  # which the description says, and 8 bits stay
    before = described.read("train", "leaf.v1.jpg")[0]
    values = np.random.default_rng(0).integers(0, 4096, (9, 11, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "leaves" / "train" / "images" / "leaf.v0.png"), values)
    assert abs(described.read("train", "leaf.v0.png")[0].mean() - values.mean() / 4095 * 255) < 0.1
    assert (described.read("train", "leaf.v1.jpg")[0] == before).all()


def test_what_opencv_reads_is_what_pillow_reads_and_sizes_need_no_pixels(tmp_path: Path) -> None:
    """Opacity is left out; of a TIFF, too, whose colours OpenCV multiplies by it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for suffix, modes in (
        ("png", "RGB RGBA L LA P 1"),
        ("jpg", "RGB L CMYK"),
        ("webp", "RGB RGBA"),
        ("tif", "RGB RGBA L LA P 1 CMYK"),
        ("bmp", "RGB L P 1"),
    ):
        for mode in modes.split():
            picture = Image.fromarray(pixels).convert(mode)
            if mode in ("LA", "RGBA"):
                picture.putalpha(Image.fromarray(pixels[..., 0]))
            picture.save(path := tmp_path / f"{mode}.{suffix}")
            with Image.open(path) as again:
                assert (read_image(path) == np.asarray(again.convert("RGB"))).all(), path
            os.truncate(path, path.stat().st_size - (100 if suffix in ("png", "jpg") else 0))
            assert read_size(path) == (40, 50)  # without the pixels


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_is_turned_as_its_label_map_or_where_there_is_none(tmp_path: Path, orientation: int) -> None:
    parts = {"images": "train/images", "labels": "train/labels"}
    described = dataset(tmp_path, splits={"train": parts, "bare": {"images": "train/images"}})
    path = tmp_path / "leaves" / "train" / "images" / "leaf.v0.png"
    stored = noise((9, 11), (0,), seed=0)[0]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    with Image.open(path) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    assert (described.read("bare", "leaf.v0.png")[0] == shown).all()
    assert described.native_size("bare", "leaf.v0.png") == shown.shape[:2]
    told = rf"EXIF orientation {orientation} rotates or mirrors it in viewers, .*9x11, height x width\) does not tell"
    for ask in (described.read, described.native_size):
        with pytest.raises(DataError, match=told):
            ask("train", "leaf.v0.png")
    save(labels(tmp_path), np.zeros(shown.shape[:2], np.uint8))
    if orientation > 4:
        assert (described.read("train", "leaf.v0.png")[0] == shown).all()
        assert described.native_size("train", "leaf.v0.png") == shown.shape[:2] == (11, 9)
    else:
        with pytest.raises(DataError, match="does not tell which version was labelled"):
            described.read("train", "leaf.v0.png")
    Image.fromarray(stored[:, :9]).save(path, exif=exif)
    save(labels(tmp_path), np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"\(9x9, height x width\) does not tell which version was labelled"):
        described.read("train", "leaf.v0.png")


def encoded(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise((9, 11), (0,), seed=0)[0]).save(file, format=format)
    return file.getvalue()


NO_PICTURES = [(case["content"].encode("latin-1"), re.escape(case["told"])) for case in WRONG["no_pictures"]]
NO_PICTURES += [
    (bytes(4096), "contains only zeros, .*copy it again"),
    (encoded("GIF"), "is a GIF"),
    (encoded("PNG")[:30], r"cannot be decoded \(.*damaged or truncated, copy it again"),
]


@pytest.mark.parametrize(("content", "told"), NO_PICTURES, ids=lambda value: str(value[:14]))
def test_a_file_that_is_no_picture_is_told_by_what_it_is(tmp_path: Path, content: bytes, told: str) -> None:
    (path := tmp_path / "a.jpg").write_bytes(content)
    for ask in (read_image, read_size, read_label_file):
        with pytest.raises(DataError, match=f"^{path}: {told}"):
            ask(path)


def test_lossy_label_maps_links_to_nothing_and_pages_are_told(tmp_path: Path) -> None:
    for format in ("JPEG", "WEBP"):
        (path := tmp_path / "a.png").write_bytes(encoded(format))
        assert read_image(path).shape == (9, 11, 3)
        with pytest.raises(DataError, match="is a JPEG or WebP image, which may alter label values"):
            read_label_file(path)
    (link := tmp_path / "b.png").symlink_to(".git/annex/objects/zx/b.png")
    with pytest.raises(DataError, match=r"is a link to \.git/annex/.*, which does not exist; .*`git annex get`"):
        read_image(link)
    page = Image.new("L", (8, 8))
    page.save(path := tmp_path / "a.tif", save_all=True, append_images=[page])
    for ask in (read_image, read_label_file):
        with pytest.raises(DataError, match="has 2 pages"):
            ask(path)


def test_a_turned_tiff_floats_numbers_with_a_sign_folders_and_nothing_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(noise((9, 11), (0,), seed=0)[0]).save(path, tiffinfo={ORIENTATION: 6})
    for ask in (read_image, read_size, read_label_file):
        with pytest.raises(DataError, match="its orientation tag 6 rotates or mirrors it; save it upright"):
            ask(path)
    cv2.imwrite(str(path), np.full((9, 11), -5, np.int16))
    with pytest.raises(DataError, match=r"unsupported mode I \(32 bits or signed\)"):
        read_image(path, white=4095)
    Image.fromarray(np.full((8, 10), 0.5, np.float32)).save(tmp_path / "b.tif")
    (tmp_path / "a.png").mkdir()
    for name, told in (
        ("b.tif", r"unsupported mode F \(32 bits or signed\); convert it"),
        ("a.png", "cannot be read .*it must be a file"),
        ("b.png", "cannot be decoded .*No such file"),
    ):
        for ask in (read_image, read_size):
            with pytest.raises(DataError, match=rf"^{tmp_path}/{name}: {told}"):
                ask(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, read_size, read_label_file])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("1", (50_000, 5_001)).save(large)
    os.truncate(large, 60)  # the header and hardly any data
    Image.new("L", (9, 9)).save(small)
    start = time.process_time()
    told = rf"{large}: has 50000 x 5001 pixels, more than the limit of 250000000; .*PIXELPICK_MAX_PIXELS"
    with pytest.raises(DataError, match=told):
        read(large)  # type: ignore[operator]
    assert time.process_time() - start < 2
    assert read_size(small) == (9, 9)
    monkeypatch.setenv("PIXELPICK_MAX_PIXELS", "80")
    with pytest.raises(DataError, match="9 x 9 pixels, more than the limit of 80"):
        read(small)  # type: ignore[operator]
    monkeypatch.setenv("PIXELPICK_MAX_PIXELS", "many")
    with pytest.raises(SpecError, match=r"PIXELPICK_MAX_PIXELS: 'many' is not a number of pixels"):
        read(small)  # type: ignore[operator]
