"""Pages as tests read them, and curves to put into pages."""

import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

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


@dataclass
class Node:
    """An element with its text and its elements."""

    tag: str
    attributes: dict[str, str | None]
    nodes: list["Node"] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str = "") -> list["Node"]:
        """The elements inside it, of one tag or all, in their order."""
        return [node for one in self.nodes for node in ([one] if tag in ("", one.tag) else []) + one.all(tag)]

    def all_text(self) -> str:
        return self.text + "".join(node.all_text() for node in self.nodes)

    @property
    def identifiers(self) -> list[str | None]:
        return [one.attributes["id"] for one in self.all() if "id" in one.attributes]

    @property
    def references(self) -> set[str]:
        """The identifiers that are referred to."""
        texts = [(name, value or "") for one in self.all() for name, value in one.attributes.items()]
        of_links = {value[1:] for name, value in texts if name.endswith("href") and value.startswith("#")}
        return of_links | {found for _, value in texts for found in re.findall(r"url\(#(.*?)\)", value)}

    @property
    def addresses(self) -> list[str]:
        """What is linked or loaded."""
        asking = ("href", "src", "xlink:href", "action", "srcset")
        return [value or "" for one in self.all() for name, value in one.attributes.items() if name in asking]


class Tree(HTMLParser):
    """Elements as they are nested; an end that is not that of the innermost element is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.path = [Node("", {})]
        self.feed(text)
        self.close()
        assert [node.tag for node in self.path] == [""]

    @property
    def root(self) -> Node:
        return self.path[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.path.append(self.path[-1].nodes[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.path[-1].nodes.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.path[-1].text += data
