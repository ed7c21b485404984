"""Scenes: street images with label maps, generated from a name, so that a whole study needs no download.

A scene is drawn back to front as seen by a driver: sky, facades along the street, ground, then the objects standing on
it, far ones first. Distances are in metres; `near` is 1 at the lower edge of the image and 0 at the horizon, so that a
metre at `near` is `near * Street.metre` pixels.

The bytes are the same on every machine: randomness is a hash and uniform draws of PCG64, and everything else is
elementwise float64 arithmetic, rounded once at the end, without sums, transcendental functions or drawing libraries,
whose last bits may differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pixelpick_ray.data.canvas import (
    HEIGHT,
    WIDTH,
    Box,
    Canvas,
    Dice,
    FloatColour,
    FloatPlane,
    Ink,
    Mask,
    cabin,
    ellipse,
    full,
    leafy,
    triangle,
)

CLASS_NAMES: tuple[str, ...] = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "car", "pedestrian")
PALETTE: tuple[tuple[int, int, int], ...] = (
    (110, 170, 225), (150, 75, 60), (250, 220, 90), (105, 85, 130), (225, 130, 200),
    (70, 135, 55), (245, 130, 35), (35, 60, 165), (215, 30, 65),
)  # fmt: skip
VOID = 255
SPLIT_SIZES = {"train": 64, "val": 24, "test": 64}
VERSION = 1

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, CAR, PEDESTRIAN = range(len(CLASS_NAMES))
CAMERA_METRES = 1.5
# Amplitude of fine grain and 4-pixel clumps by class, in grey levels, in the order of CLASS_NAMES.
GRAIN = np.array([1.0, 5.0, 3.0, 5.0, 8.0, 20.0, 2.0, 3.0, 5.0])
CLUMPS = np.array([3.0, 7.0, 4.0, 7.0, 7.0, 28.0, 3.0, 4.0, 7.0])

WALL_COLOURS: tuple[FloatColour, ...] = (
    (112, 112, 116), (150, 148, 142), (196, 188, 170), (140, 82, 66), (168, 130, 98), (92, 78, 72),
    (214, 214, 212), (128, 150, 176), (104, 116, 98), (186, 150, 112),
)  # fmt: skip
LEAF_COLOURS: tuple[FloatColour, ...] = (
    (58, 92, 40), (78, 110, 52), (44, 72, 44), (104, 116, 56), (142, 96, 46), (92, 84, 58),
)  # fmt: skip
CAR_COLOURS: tuple[FloatColour, ...] = (
    (150, 152, 156), (42, 42, 46), (222, 222, 222), (158, 36, 34), (40, 62, 128), (56, 92, 58),
    (96, 98, 102), (188, 168, 132),
)  # fmt: skip
CLOTHES: tuple[FloatColour, ...] = (
    (44, 44, 54), (150, 44, 44), (52, 72, 122), (196, 190, 180), (96, 92, 72), (62, 98, 66), (128, 128, 130),
)  # fmt: skip
SIGN_COLOURS: tuple[FloatColour, ...] = ((214, 26, 32), (28, 72, 190), (240, 196, 30), (236, 236, 232), (30, 124, 66))
DARK_GLASS: FloatColour = (46, 54, 64)
RUBBER: FloatColour = (28, 28, 30)


@dataclass(frozen=True)
class Street:
    """Geometry: row of the horizon, column of the vanishing point, pixels per metre at near 1, borders in metres."""

    horizon: float
    vanish: float
    metre: float
    road: tuple[float, float]
    walls: tuple[float, float]

    def standing(self, near: float, across: float, size: tuple[float, float]) -> Box:
        """Return the box of an upright object of `size` (high, wide) metres, `across` metres right of the camera."""
        foot, middle = self.horizon + near * (HEIGHT - self.horizon), self.vanish + across * self.metre * near
        high, half = size[0] * self.metre * near, size[1] * self.metre * near / 2
        return Box(foot - high, middle - half, foot, middle + half)


@dataclass(frozen=True)
class Weather:
    """The light: sky colours at zenith and horizon, gain of each channel, strength of haze, and whether it is night."""

    zenith: FloatColour
    skyline: FloatColour
    cast: FloatColour
    haze: float
    night: bool


def scene(split: str, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return image `index` of a split, (H, W, 3) RGB, and its label map (H, W) of classes and VOID, both uint8.

    Raises KeyError for an unknown split and IndexError for an index outside it.
    """
    if split not in SPLIT_SIZES:
        raise KeyError(f"scenes has no split {split!r}; it has {', '.join(SPLIT_SIZES)}")
    if not 0 <= index < SPLIT_SIZES[split]:
        raise IndexError(f"scenes/{split} has no picture {index}; it has 0 to {SPLIT_SIZES[split] - 1}")
    dice = Dice(f"scenes/{VERSION}/{split}/{index}")
    weather, street = roll_weather(dice), roll_street(dice)
    canvas = Canvas(dice)
    draw_sky(canvas, dice, weather)
    draw_distance(canvas, dice, street)
    for side in (0, 1):
        draw_facades(canvas, dice, street, side=side, night=weather.night)
    draw_ground(canvas, dice, street)
    draw_things(canvas, dice, street)
    image = develop(canvas, dice, weather)
    blank_bonnet(canvas, image, dice)
    blank_borders(canvas.label, dice)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8), canvas.label


def roll_weather(dice: Dice) -> Weather:
    """Return clear, overcast, low sun or night, in this order of frequency."""
    kind = dice.pick(("clear", "clear", "clear", "overcast", "overcast", "low sun", "night"))
    zenith, skyline, gain = {
        "clear": ((92, 142, 208), (188, 210, 230), 1.0),
        "overcast": ((176, 180, 186), (206, 208, 210), 0.8),
        "low sun": ((128, 132, 168), (238, 188, 138), 0.75),
        "night": ((52, 58, 92), (104, 96, 112), 0.5),
    }[kind]
    warm = dice.between(-0.1, 0.1) + (0.12 if kind == "low sun" else 0)
    gain = gain * dice.between(0.8, 1.15)
    cast = (gain * (1 + warm), gain * dice.between(0.94, 1.06), gain * (1 - warm))
    return Weather(dice.tint(zenith, 0.12), dice.tint(skyline, 0.1), cast, dice.between(0, 0.35), kind == "night")


def roll_street(dice: Dice) -> Street:
    """Return the geometry: the road spans 5 to 10 metres and each pavement 1.5 to 5."""
    horizon = dice.between(36, 48)
    left, right = -dice.between(2, 5.5), dice.between(2, 4.5)
    walls = (left - dice.between(1.5, 5), right + dice.between(1.5, 5))
    return Street(horizon, dice.between(44, 84), (HEIGHT - horizon) / CAMERA_METRES, (left, right), walls)


def draw_sky(canvas: Canvas, dice: Dice, weather: Weather) -> None:
    """Fill the image with a vertical gradient and usually clouds; only the sky ignores the light's gain."""
    down = np.clip(canvas.rows / 48, 0, 1)[..., None]
    blue = np.array(weather.zenith) * (1 - down) + np.array(weather.skyline) * down
    cover = dice.clouds(16) + dice.clouds(8) / 2 + dice.between(-1, 0.4)
    white = np.array(dice.tint(weather.skyline, 0.15)) * 1.06
    amount = np.clip(cover, 0, 0.85)[..., None]
    canvas.image[:] = (blue * (1 - amount) + white * amount) / np.array(weather.cast)


def draw_distance(canvas: Canvas, dice: Dice, street: Street) -> None:
    """Draw buildings and woods along the horizon."""
    left = -dice.between(0, 10)
    while left < WIDTH:
        wide, high = dice.between(6, 22), dice.between(2, 15)
        box = Box(street.horizon - high, left, street.horizon + 2, left + wide)
        kind = dice.between(0, 1)
        if kind < 0.45:
            canvas.stamp(box, Ink(dice.tint(dice.pick(WALL_COLOURS), 0.2), BUILDING, 0.02))
        elif kind < 0.8:
            canvas.stamp(box.part(0, -0.3, 1.4, 1.3), Ink(dice.tint(dice.pick(LEAF_COLOURS), 0.2), TREE, 0.02), leafy)
        left += wide


def draw_facades(canvas: Canvas, dice: Dice, street: Street, *, side: int, night: bool) -> None:
    """Draw one row of houses from the vanishing point towards the camera, with occasional gaps between them."""
    # Along a column a facade's nearness is constant: that of the wall's foot there.
    near = (canvas.columns - street.vanish) / (street.walls[side] * street.metre)
    start = dice.between(0.04, 0.1)
    while start < 1:
        end = start * dice.between(1.25, 2.2)
        houses = (near >= start) & (near < end)
        if dice.chance(0.78):
            draw_house(canvas, dice, street, plot=houses, near=near, night=night)
        start = end


def draw_house(canvas: Canvas, dice: Dice, street: Street, *, plot: Mask, near: FloatPlane, night: bool) -> None:
    """Draw one facade on a plot, a mask of columns: storeys of windows, and a shop front or a plinth below."""
    storey, storeys = dice.between(2.7, 3.4), dice.count(1, 4)
    safe = np.where(plot, near, 1.0)
    up = CAMERA_METRES - (canvas.rows - street.horizon) / (street.metre * safe)
    along = 3.0 / safe / dice.between(1.6, 3.2)
    wall = plot & (up >= 0) & (up < storey * storeys + 0.6)
    colour = dice.tint(dice.pick(WALL_COLOURS), 0.2)
    canvas.fill(wall, colour, BUILDING)
    canvas.near[wall] = near[wall]
    level, bay = up / storey, along - np.floor(along)
    pane = wall & (up < storey * storeys) & (level - np.floor(level) > 0.32) & (level - np.floor(level) < 0.8)
    window = pane & (bay > 0.28) & (bay < dice.between(0.6, 0.95))
    canvas.fill(window, dice.tint((150, 170, 190) if dice.chance(0.3) else DARK_GLASS, 0.3), BUILDING)
    if night:
        lit = window & ((np.floor(level) + np.floor(along)) % 3 == dice.count(0, 2))
        canvas.fill(lit, (400, 330, 190), BUILDING)
    front = wall & (up < (storey * 0.85 if dice.chance(0.3) else 0.7))
    canvas.fill(front, dice.tint(dice.pick(WALL_COLOURS + SIGN_COLOURS + CLOTHES), 0.3), BUILDING)
    canvas.fill(wall & (up > storey * storeys + 0.25), dice.tint(colour, 0.3), BUILDING)


def draw_ground(canvas: Canvas, dice: Dice, street: Street) -> None:
    """Draw road, markings, kerbs and pavement with its joints, and sometimes a shadow across them."""
    near = (canvas.rows - street.horizon) / (HEIGHT - street.horizon)
    ground = (near > 0) & (canvas.label != BUILDING)
    near = np.where(near > 0, near, 1.0)
    across = (canvas.columns - street.vanish) / (street.metre * near)
    ahead = 3.0 / near
    # Beyond the walls' feet the ground is visible only through gaps between houses.
    road = (near <= 1) & (across > street.road[0]) & (across < street.road[1]) & (canvas.rows > street.horizon)
    stone = dice.tint(dice.pick(((152, 150, 146), (132, 130, 130), (168, 150, 124), (146, 112, 100))), 0.15)
    asphalt = dice.tint(dice.pick(((100, 100, 104), (82, 82, 88), (118, 114, 108), (128, 126, 124))), 0.15)
    canvas.fill(ground, stone, PAVEMENT)
    joints = (ahead - np.floor(ahead) < 0.12) | (across - np.floor(across) < 0.08)
    canvas.fill(ground & joints & (near > 0.2), dice.tint(stone, 0.15), PAVEMENT)
    kerb = ground & (across > street.road[0] - 0.25) & (across < street.road[1] + 0.25)
    canvas.fill(kerb, dice.tint((158, 156, 152), 0.15), PAVEMENT)
    canvas.fill(road, asphalt, ROAD)
    canvas.near[ground] = near[ground]
    draw_markings(canvas, dice, street, road=road, across=across, ahead=ahead)
    sunny, start, slope = dice.chance(0.5), dice.between(3, 12), dice.between(-1.5, 1.5)
    if sunny:
        end = start * dice.between(1.3, 3)
        shadow = (ground | road) & (ahead + slope * across > start) & (ahead + slope * across < end)
        canvas.image[shadow] *= dice.between(0.45, 0.7)


def draw_markings(
    canvas: Canvas, dice: Dice, street: Street, *, road: Mask, across: FloatPlane, ahead: FloatPlane
) -> None:
    """Draw a broken centre line, and sometimes lines along the kerbs, a crossing, or a patch of other asphalt."""
    white = dice.tint((206, 204, 196), 0.15)
    if dice.chance(0.4):
        start, middle = dice.between(3, 9), dice.between(-3, 3)
        patch = road & (ahead > start) & (ahead < start * 1.6) & (np.abs(across - middle) < dice.between(0.5, 2))
        canvas.image[patch] *= dice.between(0.7, 1.25)
    centre = (street.road[0] + street.road[1]) / 2
    phase = ahead / 5 + dice.between(0, 1)
    line = (np.abs(across - centre) < 0.08) & (phase - np.floor(phase) < 0.55)
    if dice.chance(0.5):
        line |= (across < street.road[0] + 0.3) & (across > street.road[0] + 0.15)
        line |= (across > street.road[1] - 0.3) & (across < street.road[1] - 0.15)
    if dice.chance(0.25):
        start = dice.between(4, 10)
        line |= (ahead > start) & (ahead < start + 3) & (across - np.floor(across) < 0.5)
    canvas.fill(road & line, white, ROAD)


DrawObject = Callable[[Canvas, Dice, Street, float], None]


def draw_things(canvas: Canvas, dice: Dice, street: Street) -> None:
    """Draw random numbers of trees, cars, people, poles and signs at random distances, far ones first."""
    plan: tuple[tuple[DrawObject, int, int, float, float], ...] = (
        (draw_tree, 0, 4, 0.1, 0.5),
        (draw_car, 1, 5, 0.08, 0.55),
        (draw_person, 0, 6, 0.22, 0.6),
        (draw_pole, 1, 4, 0.18, 0.6),
        (draw_sign, 0, 4, 0.22, 0.55),
    )
    things: list[tuple[float, int, DrawObject]] = []
    for draw, fewest, most, far, close in plan:
        for _ in range(dice.count(fewest, most)):
            # Spread evenly in the image, not on the ground, where nearly everything would be a dot at the horizon.
            things.append((dice.between(far, close), len(things), draw))
    for near, _, draw in sorted(things, key=lambda thing: thing[:2]):
        draw(canvas, dice, street, near)


def kerbside(dice: Dice, street: Street) -> float:
    """Return a position on a pavement in metres across, mostly nearer to the kerb than to the wall."""
    side = dice.side()
    share = dice.between(0.08, 0.55)
    return street.road[side] * (1 - share) + street.walls[side] * share


def draw_tree(canvas: Canvas, dice: Dice, street: Street, near: float) -> None:
    """Draw a tree on a pavement: a trunk and a crown of several leafy ellipses."""
    high = dice.between(3.5, 7)
    box = street.standing(near, kerbside(dice, street), (high, high * dice.between(0.5, 0.9)))
    canvas.shade(box.part(0.97, 0, 1.03, 1), 0.65)
    canvas.stamp(box.part(0.4, 0.46, 1, 0.54), Ink(dice.tint((82, 66, 54), 0.25), TREE, near))
    leaf = dice.pick(LEAF_COLOURS)
    for _ in range(dice.count(5, 9)):
        top, left = dice.between(0, 0.35), dice.between(0, 0.5)
        canvas.stamp(box.part(top, left, top + 0.32, left + 0.5), Ink(dice.tint(leaf, 0.3), TREE, near), leafy)


def draw_car(canvas: Canvas, dice: Dice, street: Street, near: float) -> None:
    """Draw a car, sometimes a van: parked or driving, from behind or (rarely) from the side."""
    parked, crossing, van = dice.chance(0.45), dice.chance(0.2), dice.chance(0.15)
    across = street.road[dice.side()] * 0.8 if parked else dice.between(street.road[0] + 1, street.road[1] - 1)
    high = 2.1 if van else dice.between(1.35, 1.6)
    box = street.standing(near, across, (high, dice.between(3.6, 4.4) if crossing else dice.between(1.6, 1.85)))
    body, wheel = Ink(dice.tint(dice.pick(CAR_COLOURS), 0.2), CAR, near), Ink(RUBBER, CAR, near)
    canvas.shade(box.part(0.88, -0.08, 1.1, 1.08), 0.4)
    for left in (0.1, 0.72) if crossing else (0.04, 0.78):
        canvas.stamp(box.part(0.72, left, 1, left + 0.18), wheel, ellipse if crossing else full)
    canvas.stamp(box.part(0, 0.15, 0.5, 0.85) if crossing else box.part(0, 0.05, 0.5, 0.95), body, cabin)
    canvas.stamp(box.part(0.42, 0, 0.86, 1), body)
    glass = Ink(dice.tint((80, 94, 108) if dice.chance(0.4) else DARK_GLASS, 0.25), CAR, near)
    canvas.stamp(box.part(0.1, 0.24, 0.4, 0.76) if crossing else box.part(0.1, 0.15, 0.42, 0.85), glass, cabin)
    lamp = Ink((205, 42, 36) if dice.chance(0.6) else (236, 232, 208), CAR, near)
    for left in () if crossing else (0.03, 0.83):
        canvas.stamp(box.part(0.5, left, 0.62, left + 0.14), lamp)


def draw_person(canvas: Canvas, dice: Dice, street: Street, near: float) -> None:
    """Draw a pedestrian, mostly on a pavement, sometimes on the road."""
    across = kerbside(dice, street) if dice.chance(0.7) else dice.between(*street.road)
    box = street.standing(near, across, (dice.between(1.5, 1.85), dice.between(0.55, 0.75)))
    canvas.shade(box.part(0.95, -0.5, 1.05, 1.5), 0.6)
    legs = Ink(dice.tint(dice.pick(CLOTHES), 0.25), PEDESTRIAN, near)
    coat = Ink(dice.tint(dice.pick(CLOTHES), 0.25), PEDESTRIAN, near)
    skin = Ink(dice.tint(dice.pick(((206, 160, 132), (142, 100, 76), (88, 62, 50))), 0.15), PEDESTRIAN, near)
    stride = dice.between(0.1, 0.3)
    canvas.stamp(box.part(0.5, 0.3 - stride / 2, 1, 0.5 - stride / 2), legs)
    canvas.stamp(box.part(0.5, 0.5 + stride / 2, 1, 0.7 + stride / 2), legs)
    canvas.stamp(box.part(0.15, 0.12, 0.58, 0.88), coat)
    canvas.stamp(box.part(0, 0.28, 0.17, 0.72), skin, ellipse)


def draw_pole(canvas: Canvas, dice: Dice, street: Street, near: float) -> None:
    """Draw a lamp post with an arm over the road, a bare post, or one with a traffic light (a sign, as in CamVid)."""
    across = kerbside(dice, street)
    high, kind = dice.between(2.8, 6), dice.between(0, 1)
    ink = Ink(dice.tint(dice.pick(((70, 72, 76), (44, 46, 48), (60, 54, 48))), 0.15), POLE, near)
    box = street.standing(near, across, (high, dice.between(0.12, 0.2)))
    canvas.stamp(box, ink)
    if kind < 0.45:
        metre = street.metre * near * (1 if across < 0 else -1)
        left, right = sorted((box.left, box.left + 1.2 * metre))
        canvas.stamp(Box(box.top, left, box.top + 0.1 * abs(metre), right), ink)
    elif kind < 0.65:
        head = street.standing(near, across, (2.8, 0.42))
        canvas.stamp(head.part(0, 0, 0.34, 1), Ink((38, 40, 38), SIGN, near))
        colour, top = dice.pick((((226, 52, 44), 0.03), ((66, 206, 120), 0.22)))
        canvas.stamp(head.part(top, 0.25, top + 0.09, 0.75), Ink(colour, SIGN, near), ellipse)


def draw_sign(canvas: Canvas, dice: Dice, street: Street, near: float) -> None:
    """Draw a traffic sign on a pavement: a post, which is a pole, and a plate."""
    across, high, wide = kerbside(dice, street), dice.between(2.1, 3), dice.between(0.65, 1)
    canvas.stamp(street.standing(near, across, (high, 0.09)), Ink(dice.tint((84, 84, 86), 0.2), POLE, near))
    box = street.standing(near, across, (high + wide / 2, wide))
    plate = Box(box.top, box.left, box.top + wide * street.metre * near, box.right)
    shape, rim, inner = dice.pick((ellipse, ellipse, triangle, full)), dice.pick(SIGN_COLOURS), dice.pick(SIGN_COLOURS)
    canvas.stamp(plate, Ink(dice.tint(rim, 0.12), SIGN, near), shape)
    canvas.stamp(plate.part(0.3, 0.28, 0.75, 0.72), Ink(dice.tint(inner, 0.12), SIGN, near), shape)


def develop(canvas: Canvas, dice: Dice, weather: Weather) -> FloatPlane:
    """Return the photograph: the canvas with texture, lighting, haze, lens blur and sensor noise."""
    texture = GRAIN[canvas.label] * dice.field(HEIGHT, WIDTH) + CLUMPS[canvas.label] * dice.clouds(4)
    unevenness = 1 + 0.2 * dice.clouds(32)
    image = (canvas.image + texture[..., None]) * unevenness[..., None]
    haze = (weather.haze * (1 - canvas.near) * (canvas.label != SKY))[..., None]
    image = image * np.array(weather.cast) * (1 - haze) + np.array(weather.skyline) * haze
    softness = dice.between(0, 0.4)
    padded: FloatPlane = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    photo: FloatPlane = image * (1 - softness) + around * (softness / 4)
    return photo + dice.between(1, 5) * (dice.field(HEIGHT, WIDTH, 3) + dice.field(HEIGHT, WIDTH, 3))


def blank_bonnet(canvas: Canvas, image: FloatPlane, dice: Dice) -> None:
    """Draw the bonnet of the camera's own car, which is void, along the lower edge."""
    offset = (canvas.columns - WIDTH / 2 - dice.between(-8, 8)) / dice.between(64, 90)
    depth = (canvas.rows - HEIGHT) / dice.between(3.5, 7.5) + 1 - offset * offset
    bonnet = depth > 0
    level = np.array(dice.tint(dice.pick(CAR_COLOURS), 0.2)) * 0.6
    image[bonnet] = level + 60 * np.clip(depth[bonnet], 0, 1)[:, None] + image[bonnet] * 0.1
    canvas.label[bonnet] = VOID


def blank_borders(label: npt.NDArray[np.uint8], dice: Dice) -> None:
    """Void a line one pixel wide above and left of some kinds of objects, as careful annotators do.

    Pixels of thin classes are never voided.
    """
    kept = (label == POLE) | (label == SIGN) | (label == PEDESTRIAN)
    before = label.copy()
    for blanked in (BUILDING, TREE, CAR):
        if not dice.chance(0.35):
            continue
        inside = before == blanked
        edge = np.zeros(label.shape, dtype=np.bool_)
        edge[:-1] |= inside[1:]
        edge[:, :-1] |= inside[:, 1:]
        label[edge & ~inside & ~kept] = VOID
