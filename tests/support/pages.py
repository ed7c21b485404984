"""Pages as tests read them, and curves to put into pages."""

import io
import re
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

from matplotlib import rc_context
from matplotlib.figure import Figure

from pixelpick_ray.report.parts import Curve, Curves, Table

VOID = {"meta", "link", "input", "img", "br", "hr"}  # have no end in HTML
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="


def drawing(title: str) -> str:
    """A small curve as a document, always with the same identifiers."""
    figure = Figure(figsize=(4, 3))
    panel = figure.subplots()
    panel.plot([10, 20, 40], [50, 60, 64], marker="o")
    panel.set_title(title)
    target = io.BytesIO()
    with rc_context({"svg.hashsalt": "page", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue().decode("utf-8")


def curves(*names: tuple[str, str]) -> Curves:
    data = Table("Numbers.", ("strategy", "mean"), (("margin", "50.0"), ("random", "49.0")), "lr")
    drawn = (Curve(axis, "log" if scale == "log" else "linear", drawing(f"{axis} {scale}")) for axis, scale in names)
    return Curves(tuple(drawn), data)


class Tree(HTMLParser):
    """Elements below a `root`, as they are nested; an end that is not that of the innermost element is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.builder, self.open = TreeBuilder(), [""]
        self.builder.start("root", {})
        self.feed(text)
        self.close()
        assert self.open == [""]
        self.builder.end("root")
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        self.open.append(tag)
        if tag in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def text_of(element: Element) -> str:
    return "".join(element.itertext())


def identifiers(root: Element) -> list[str]:
    """Those of all elements, each of which is there once; what is referred to is there."""
    texts = [(name, value) for one in root.iter() for name, value in one.attrib.items()]
    found = [value for name, value in texts if name == "id"]
    assert len(set(found)) == len(found)
    of_links = {value[1:] for name, value in texts if name.endswith("href") and value.startswith("#")}
    assert set(found) >= of_links | {name for _, value in texts for name in re.findall(r"url\(#(.*?)\)", value)}
    return found
