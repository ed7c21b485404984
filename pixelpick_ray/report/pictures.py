"""Contact sheets: picked pixels on their images, predictions before and after, and their errors.

Everything shown is in the store: descriptions of splits and the small predictions of evaluations. An image that is
shown several times is embedded in the page once.
"""

import base64
import hashlib
import html
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelpick_ray.config.canonical import brief
from pixelpick_ray.data.description import Description, read_description
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.report.cells import Line
from pixelpick_ray.report.chains import ReportedChain
from pixelpick_ray.report.parts import Pictures
from pixelpick_ray.report.rows import Results
from pixelpick_ray.report.tables import strategy_text
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import StageRecord
from pixelpick_ray.tasks import PIXELS, prediction_file

Indices = npt.NDArray[np.uint8]
Shape = tuple[int, int]  # height, width

LINES = 6  # at most, per setting
RIGHT, WRONG, VOID = (224, 224, 224), (213, 94, 0), (128, 128, 128)


class _Album:
    """The images of a page; repetitions refer to the first occurrence."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def image(self, kind: str, content: bytes, shape: Shape) -> str:
        """Return an image as an SVG element, stretched to a shape."""
        size = f'width="{shape[1]}" height="{shape[0]}"'
        identity = f"picture-{hashlib.sha256(size.encode('ascii') + content).hexdigest()[:16]}"
        if identity in self._known:
            return f'<use href="#{identity}"/>'
        self._known.add(identity)
        style = ' class="label-map"' if kind == "png" else ""
        data = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return f'<image id="{identity}"{style} href="{data}" {size} preserveAspectRatio="none"/>'


def contact_sheets(
    store: Store, results: Results, chains: Sequence[ReportedChain], *, settings: int
) -> tuple[Pictures, ...]:
    """Show picked pixels and predictions of each line's first stored seed, for at most `settings` settings."""
    by_setting: defaultdict[tuple[tuple[str, ...], str], dict[Line, ReportedChain]] = defaultdict(dict)
    for chain in chains:
        if chain.stages:
            by_setting[chain.line.model, chain.line.setting].setdefault(chain.line, chain)
    sheets, album = [], _Album()
    for lines in list(by_setting.values())[:settings]:
        shown = dict(list(lines.items())[:LINES])
        sheets += [_picks_sheet(store, shown, album), _predictions_sheet(store, results, shown, album)]
    return tuple(sheet for sheet in sheets if sheet)


# Picked pixels


@dataclass(frozen=True)
class _StagePixels:
    """The new pixels of a stage and the budget they lead to."""

    stage: int
    budget: int
    pixels: LabelledPixels


def _picks_sheet(store: Store, lines: Mapping[Line, ReportedChain], album: _Album) -> Pictures | None:
    chain = next(iter(lines.values()))
    description = read_description(store, chain.training_description)
    asked = {line: _stages(store, one) for line, one in lines.items()}
    if description is None or not any(asked.values()):
        return None
    names = chain.class_names
    classes = _Classes(names, [f"rgb({r},{g},{b})" for r, g, b in description.facts["palette"]])
    rows = []
    for name, shape, image in zip(description.names, description.shapes, description.images, strict=True):
        drawn = (_dots(stages, name, radius=0.014 * max(shape), classes=classes) for stages in asked.values())
        rows.append(
            [_svg(album.image("jpeg", image, shape) + dots, shape, f"pixels picked in {name}") for dots in drawn]
        )
    controls = _stage_filter(max(one.stage for stages in asked.values() for one in stages) + 1) + classes.legend()
    caption = f"Pixels asked for{_which(lines)}, coloured by the class answered."
    return Pictures(caption, controls + _grid([_head(line) for line in lines], rows))


@dataclass(frozen=True)
class _Classes:
    """Names and CSS colours of the classes, by index."""

    names: Sequence[str]
    colours: Sequence[str]

    def legend(self) -> str:
        items = (
            f'<li><span class="swatch" style="background:{colour}"></span>{html.escape(name)}</li>'
            for name, colour in zip(self.names, self.colours, strict=True)
        )
        return f'<ul class="classes">{"".join(items)}</ul>'


def _stages(store: Store, chain: ReportedChain) -> list[_StagePixels]:
    found = []
    for stage, (budget, key) in enumerate(chain.pick_keys()):
        files = store.files("pick", key, [PIXELS]) if key else None
        if files is not None:
            pixels = LabelledPixels.read(io.BytesIO(files[PIXELS]))
            found.append(_StagePixels(stage, budget, pixels.with_class()))
    return found


def _dots(stages: Sequence[_StagePixels], name: str, *, radius: float, classes: _Classes) -> str:
    """Pixels of one image, grouped by stage."""
    return "".join(
        f'<g class="picks" data-stage="{one.stage + 1}" stroke-width="{radius / 3:.2g}">'
        f"{''.join(_circles(one, name, radius=radius, classes=classes))}</g>"
        for one in stages
    )


def _circles(asked: _StagePixels, name: str, *, radius: float, classes: _Classes) -> Iterator[str]:
    pixels = asked.pixels
    at = pixels.of_image(name)
    for y, x, label in zip(pixels.y[at].tolist(), pixels.x[at].tolist(), pixels.label[at].tolist(), strict=True):
        text = f"{classes.names[label]}, asked for at {asked.budget} pixels"
        yield (
            f'<circle cx="{x + 0.5:g}" cy="{y + 0.5:g}" r="{radius:.3g}" fill="{classes.colours[label]}">'
            f"<title>{html.escape(text)}</title></circle>"
        )


def _stage_filter(stages: int) -> str:
    """Slider with which the page's script hides later stages; without scripts, all are shown."""
    if stages < 2:
        return ""
    return (
        f'<label class="stages" hidden>stages: the first <output>{stages}</output> of {stages} '
        f'<input type="range" min="1" max="{stages}" value="{stages}"></label>'
    )


# Predictions


def _predictions_sheet(
    store: Store, results: Results, lines: Mapping[Line, ReportedChain], album: _Album
) -> Pictures | None:
    chain = next(iter(lines.values()))
    report = results.evaluate(chain.point.experiment).report
    key = chain.evaluated_description(report)
    description = read_description(store, key)
    if description is None:
        return None
    first, *_ = chain.stages
    columns = {f"{first.budget} pixels": _predictions(store, first, report, description)}
    for line, one in lines.items():
        last = one.stages[: one.trial.num_stages][-1]
        if last.budget != first.budget:
            columns[f"{_head(line)}, {last.budget} pixels"] = _predictions(store, last, report, description)
    heads = ["image", "truth", *(head for name in columns for head in (name, f"{name}: errors"))]
    classes = len(description.facts["palette"])
    rows = []
    for name, shape, image, truth in zip(
        description.names, description.shapes, description.images, description.labels, strict=True
    ):
        cells = [_svg(album.image("jpeg", image, shape), shape, name)]
        cells.append(_svg(album.image("png", truth, shape), shape, f"truth of {name}"))
        for found in columns.values():
            cells += _prediction_cells(found.get(name), truth, num_classes=classes, shape=shape, album=album)
        rows.append(cells)
    place = f"{chain.point.dataset} {report}"
    caption = f"Predictions on {place} before and after{_which(lines)}; errors are orange, void is dark grey."
    return Pictures(caption, _grid(heads, rows))


def _predictions(store: Store, stage: StageRecord, split: str, description: Description) -> dict[str, bytes]:
    """Stored small predictions of a stage, by image name."""
    key = stage.evaluations.get(split)
    files = {name: prediction_file(name) for name in description.names}
    found = store.files("evaluation", key, list(files.values())) if key else None
    return {name: found[file] for name, file in files.items()} if found else {}


def _prediction_cells(
    predicted: bytes | None, truth: bytes, *, num_classes: int, shape: Shape, album: _Album
) -> list[str]:
    """A prediction and its errors; empty if it is not stored."""
    if predicted is None:
        return ["", ""]
    errors, share = error_map(_indices(predicted), _indices(truth), num_classes)
    text = "void only" if math.isnan(share) else f"{100 * share:.0f} % wrong"
    return [
        _svg(album.image("png", predicted, shape), shape, "prediction"),
        f"{_svg(album.image('png', _palette_png(errors), shape), shape, text)}<small>{text}</small>",
    ]


def error_map(predicted: Indices, truth: Indices, num_classes: int) -> tuple[Indices, float]:
    """Return (H, W) with 0 for right, 1 for wrong and 2 for void, and the share of wrong non-void pixels or NaN."""
    void = truth >= num_classes
    wrong = (predicted != truth) & ~void
    labelled = int((~void).sum())
    return np.where(void, 2, wrong).astype(np.uint8), float(wrong.sum()) / labelled if labelled else math.nan


def _indices(png: bytes) -> Indices:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return np.asarray(picture, dtype=np.uint8)


def _palette_png(indices: Indices) -> bytes:
    picture, target = Image.fromarray(indices, mode="P"), io.BytesIO()
    picture.putpalette([value for colour in (RIGHT, WRONG, VOID) for value in colour])
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()


# HTML


def _svg(content: str, shape: Shape, text: str) -> str:
    height, width = shape
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(text)}">{content}</svg>'


def _head(line: Line) -> str:
    return ", ".join(text for text in (strategy_text(line), brief(line.setting, 60)) if text)


def _which(lines: Mapping[Line, ReportedChain]) -> str:
    """Model and seeds, for a caption."""
    line, chain = next(iter(lines.items()))
    seeds = sorted({one.point.seed for one in lines.values()})
    numbers = " and ".join(map(str, seeds))
    model = f"{line.dataset}, {line.architecture} {line.backbone}, pretrained {line.pretrained}"
    return f" ({chain.point.experiment}: {model}, seed{'s' * (len(seeds) > 1)} {numbers})"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Grid of pictures, one row per image, with column heads; it scrolls sideways as a whole."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n" for cells in rows)
    return (
        f'<div class="wide"><table class="pictures"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )
