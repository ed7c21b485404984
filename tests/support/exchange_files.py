"""An example of what is exchanged, and helpers, for the tests of the exchange formats."""

from typing import Any

from pixelpick_ray.annotate.exchange import AskedImage, Exchanged, ExchangedPoint, read


def picture(name: str, height: int, width: int, native_height: int, native_width: int, file: str = "") -> AskedImage:
    """An image whose file has this size."""
    return AskedImage(name, height, width, lambda: (native_height, native_width), file)


CLASSES = ("road", "sky & <cloud>", "дерево")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 255, 1))
IMAGES = (
    picture("a b.png", height=4, width=6, native_height=8, native_width=18),
    picture("""q"'&<é>.png""", height=5, width=5, native_height=5, native_width=5),
    picture("city_1", height=3, width=2, native_height=7, native_width=3, file="city_1_leftImg8bit.png"),
)


def point(y: int, x: int, said: str | None = None, image: str = "a b.png", **facts: Any) -> ExchangedPoint:
    """A pixel, and what was said of it: a class, or "void", "unknown" or nothing."""
    kind = said if said in ("void", "unknown", None) else "class"
    label = said if kind == "class" else None
    return ExchangedPoint(**({"image": image, "y": y, "x": x, "kind": kind, "label": label} | facts))


POINTS = (
    point(0, 5, "road", annotator="Ann A", time=1.5, seconds=0.1, id="i1"),
    point(0, 5, "дерево", annotator="Bo", repeat=True, suggestion="road"),
    point(1, 0, "void", annotator="Ann A", time=2.0, seconds=3.0, idle_seconds=40.25, id="i2"),
    point(3, 3),
    point(2, 1, "sky & <cloud>", "city_1"),
    point(2, 0, "unknown", "city_1", annotator='"<&', id="]]>"),
)
WHOLE = Exchanged(CLASSES, PALETTE, IMAGES, POINTS)


def back(content: bytes, format_name: str, whole: Exchanged = WHOLE) -> tuple[ExchangedPoint, ...]:
    return read(content, format_name, class_names=whole.class_names, images=whole.images)


def entry(height: int, width: int, xs: Any, ys: Any, **more: Any) -> dict[str, Any]:
    """An image in the queries of the published code."""
    return {"height": height, "width": width, "x_coords": xs, "y_coords": ys} | more
