"""A small NumPy canvas, its shapes, and random numbers for scenes: the same bytes on every machine."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

SIZE = (96, 128)
HEIGHT, WIDTH = SIZE

FloatPlane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
FloatColour = tuple[float, float, float]
CanvasShape = Callable[[FloatPlane, FloatPlane, FloatPlane], Mask]
T = TypeVar("T")


class Dice:
    """Random numbers for one scene; every draw is a uniform double, whose generation NumPy keeps stable."""

    def __init__(self, name: str) -> None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def between(self, low: float, high: float) -> float:
        """Return a uniform number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.between(0, 1) < probability

    def count(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return min(int(self.between(low, high + 1)), high)

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices, all equally likely."""
        return choices[self.count(0, len(choices) - 1)]

    def side(self) -> int:
        """Return 0 for the left of the street, 1 for the right."""
        return self.count(0, 1)

    def field(self, *shape: int) -> FloatPlane:
        """Return independent values in [-1, 1)."""
        return self._generator.random(shape) * 2 - 1

    def clouds(self, cell: int) -> FloatPlane:
        """Return a continuous field in [-1, 1), shape SIZE, that varies over `cell` pixels."""
        knots = self.field(HEIGHT // cell + 2, WIDTH // cell + 2)
        row, column = np.arange(HEIGHT), np.arange(WIDTH)
        down, right = (row % cell / cell)[:, None], (column % cell / cell)[None, :]
        bands = knots[row // cell] * (1 - down) + knots[row // cell + 1] * down
        return bands[:, column // cell] * (1 - right) + bands[:, column // cell + 1] * right

    def tint(self, colour: FloatColour, spread: float) -> FloatColour:
        """Return the colour made lighter or darker, with each channel varied slightly on its own."""
        gain = self.between(1 - spread, 1 + spread)
        red, green, blue = (level * gain * self.between(1 - spread / 4, 1 + spread / 4) for level in colour)
        return red, green, blue


class Box(NamedTuple):
    """A rectangle in pixels, which may lie partly or wholly outside the image."""

    top: float
    left: float
    bottom: float
    right: float

    def part(self, top: float, left: float, bottom: float, right: float) -> "Box":
        """Return the box inside this one at these fractions of its height and width."""
        height, width = self.bottom - self.top, self.right - self.left
        return Box(
            self.top + top * height, self.left + left * width, self.top + bottom * height, self.left + right * width
        )


class Ink(NamedTuple):
    """What a shape is drawn with: its colour, its class and its nearness."""

    colour: FloatColour
    label: int
    near: float


def full(v: FloatPlane, u: FloatPlane, grain: FloatPlane) -> Mask:
    """Return the whole box; as in all shapes, `v` and `u` are fractions of its height and width."""
    return (v >= 0) & (u >= 0) & (grain >= 0)


def ellipse(v: FloatPlane, u: FloatPlane, grain: FloatPlane) -> Mask:
    """Return the inscribed ellipse."""
    return (2 * u - 1) * (2 * u - 1) + (2 * v - 1) * (2 * v - 1) <= 1 + 0 * grain


def leafy(v: FloatPlane, u: FloatPlane, grain: FloatPlane) -> Mask:
    """Return an ellipse with a frayed edge, through which the background shows."""
    return (2 * u - 1) * (2 * u - 1) + (2 * v - 1) * (2 * v - 1) <= 0.5 + 0.7 * grain


def cabin(v: FloatPlane, u: FloatPlane, grain: FloatPlane) -> Mask:
    """Return a trapezium that is narrower at the top."""
    return np.abs(2 * u - 1) <= 0.7 + 0.3 * v + 0 * grain


def triangle(v: FloatPlane, u: FloatPlane, grain: FloatPlane) -> Mask:
    """Return a triangle that points upwards."""
    return np.abs(2 * u - 1) <= v + 0.15 + 0 * grain


class Canvas:
    """The image being drawn: colour (float, before lighting), class and nearness of each pixel."""

    def __init__(self, dice: Dice) -> None:
        self.image = np.zeros((HEIGHT, WIDTH, 3))
        self.label = np.zeros(SIZE, dtype=np.uint8)
        self.near = np.zeros(SIZE)
        self.grain = dice.field(HEIGHT, WIDTH) / 2 + 0.5
        self.rows = np.arange(HEIGHT)[:, None] + np.full(SIZE, 0.5)
        self.columns = np.arange(WIDTH)[None, :] + np.full(SIZE, 0.5)

    def stamp(self, box: Box, ink: Ink, shape: CanvasShape = full) -> None:
        """Fill a shape that spans the box, at least one pixel high and wide."""
        window, mask = self._inside(box, shape)
        self.image[window][mask] = ink.colour
        self.label[window][mask] = ink.label
        self.near[window][mask] = ink.near

    def shade(self, box: Box, gain: float) -> None:
        """Darken an ellipse and leave the classes as they are."""
        window, mask = self._inside(box, ellipse)
        self.image[window][mask] *= gain

    def fill(self, mask: Mask, colour: FloatColour | FloatPlane, label: int) -> None:
        """Paint where the mask (shape SIZE) is true; a colour array has shape (true pixels, 3) or (3,)."""
        self.image[mask] = colour
        self.label[mask] = label

    def _inside(self, box: Box, shape: CanvasShape) -> tuple[tuple[slice, slice], Mask]:
        top, left = int(np.floor(box.top + 0.5)), int(np.floor(box.left + 0.5))
        high = max(int(np.floor(box.bottom + 0.5)) - top, 1)
        wide = max(int(np.floor(box.right + 0.5)) - left, 1)
        window = (
            slice(min(max(top, 0), HEIGHT), min(max(top + high, 0), HEIGHT)),
            slice(min(max(left, 0), WIDTH), min(max(left + wide, 0), WIDTH)),
        )
        v, u = (self.rows[window] - top) / high, (self.columns[window] - left) / wide
        return window, shape(v, u, self.grain[window])
