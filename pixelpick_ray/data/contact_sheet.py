"""A contact sheet: some images with their label maps overlaid, and a legend."""

from collections.abc import Iterable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelpick_ray.data.dataset import DatasetFacts, UInt8Array

IMAGES = 10
CELL = (200, 260)  # maximum height and width of an image, in pixels
GAP, LINE = 6, 18  # pixels
VOID_COLOURS = ((128, 128, 128), (0, 0, 0), (255, 255, 255), (255, 0, 255))  # the first not used by a class


def contact_sheet(facts: DatasetFacts, examples: Iterable[tuple[str, UInt8Array, UInt8Array]]) -> Image.Image:
    """Draw (title, image (H, W, 3), label map (H, W)) two per row, each image next to its overlay, above a legend."""
    shown = list(examples)
    legend = [*zip(facts.class_names, facts.palette, strict=True), ("void", _void_colour(facts))]
    width = 4 * CELL[1] + 5 * GAP
    entries = max(1, width // 180)
    rows, legend_rows = -(-len(shown) // 2), -(-len(legend) // entries)
    sheet = Image.new("RGB", (width, rows * (CELL[0] + LINE + GAP) + legend_rows * LINE + 2 * GAP), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for at, (title, image, label) in enumerate(shown):
        left, top = GAP + at % 2 * 2 * (CELL[1] + GAP), GAP + at // 2 * (CELL[0] + LINE + GAP)
        pen.text((left, top), title[-80:], fill=(0, 0, 0), font=font)
        small = _fitted(image, cv2.INTER_AREA)
        coloured = _table(facts)[_fitted(label, cv2.INTER_NEAREST)]
        overlay = cv2.addWeighted(small, 0.35, coloured, 0.65, 0)
        sheet.paste(Image.fromarray(small), (left, top + LINE))
        sheet.paste(Image.fromarray(overlay), (left + CELL[1] + GAP, top + LINE))
    below = GAP + rows * (CELL[0] + LINE + GAP)
    for at, (name, colour) in enumerate(legend):
        left, top = GAP + at % entries * 180, below + at // entries * LINE
        pen.rectangle((left, top + 2, left + 12, top + 14), fill=colour, outline=(0, 0, 0))
        pen.text((left + 18, top), name[:26], fill=(0, 0, 0), font=font)
    return sheet


def _void_colour(facts: DatasetFacts) -> tuple[int, int, int]:
    return next((colour for colour in VOID_COLOURS if colour not in facts.palette), VOID_COLOURS[0])


def _table(facts: DatasetFacts) -> UInt8Array:
    table = np.full((256, 3), _void_colour(facts), dtype=np.uint8)
    table[: facts.num_classes] = facts.palette
    return table


def _fitted(pixels: UInt8Array, interpolation: int) -> UInt8Array:
    factor = min(1.0, CELL[0] / pixels.shape[0], CELL[1] / pixels.shape[1])
    size = max(1, int(pixels.shape[1] * factor)), max(1, int(pixels.shape[0] * factor))
    return np.asarray(cv2.resize(np.asarray(pixels), size, interpolation=interpolation), dtype=np.uint8)
