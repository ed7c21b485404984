"""Contact sheets: what is shown, once in the page, as HTML that a reader can trust."""

import base64
import io
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.trial import Trial
from pixelpick_ray.data.labels import UNKNOWN, VOID, LabelledPixels
from pixelpick_ray.report.chains import load_chains
from pixelpick_ray.report.parts import Pictures
from pixelpick_ray.report.pictures import contact_sheets, error_map
from tests.support.data_folders import loaded
from tests.support.pages import Node, Tree
from tests.support.sheets import GRID, ONE, PREDICTED, TEST, TRAINING, fill, label_map, mark, predict
from tests.support.study import Described, Study, chain_path, experiment

pytestmark = pytest.mark.whole_report


def sheets(study: Study, *specs: Experiment, settings: int = 3) -> tuple[Pictures, ...]:
    results = study.results(*specs)
    return contact_sheets(study.store, results, load_chains(study.store, results), settings=settings)


@pytest.fixture(scope="module")
def shown(kept: Study) -> tuple[Pictures, ...]:
    """The sheets of two strategies and two stages: picks and predictions."""
    return sheets(kept, fill(kept, GRID))


def tree(*found: Pictures) -> Node:
    return Tree("".join(one.html for one in found)).root


def grid(sheet: Pictures) -> tuple[list[str], list[list[Node]]]:
    """Heads and, row by row, cells of a sheet."""
    (table,) = tree(sheet).all("table")
    heads, *rows = table.all("tr")
    return [head.all_text() for head in heads.all("th")], [row.all("td") for row in rows]


def decoded(root: Node, cell: Node) -> Image.Image:
    """The picture of a cell, which may be embedded in another one."""
    used = {use.attributes["href"] for use in cell.all("use")}
    (shown,) = cell.all("image") or [one for one in root.all("image") if f"#{one.attributes['id']}" in used]
    _, _, data = str(shown.attributes["href"]).partition(";base64,")
    return loaded(io.BytesIO(base64.b64decode(data, validate=True)))


def test_every_labelled_pixel_of_a_shown_image_is_a_dot(shown: tuple[Pictures, ...]) -> None:
    heads, rows = grid(shown[0])
    assert heads == ["margin", "random"]
    assert [[len(cell.all("circle")) for cell in row] for row in rows] == [[3, 3], [2, 2]]
    first, second = (group for group in rows[0][0].all("g") if group.attributes["class"] == "picks")
    assert (first.attributes["data-stage"], second.attributes["data-stage"]) == ("1", "2")
    (dot,) = first.all("circle")
    # The middle of pixel (0, 1), in the first colour of the palette.
    assert (dot.attributes["cx"], dot.attributes["cy"], dot.attributes["fill"]) == ("1.5", "0.5", "rgb(10,20,30)")
    assert dot.all_text() == "sky, asked for at 10 pixels"
    assert [(dot.attributes["cx"], dot.attributes["cy"], dot.all_text()) for dot in second.all("circle")] == [
        ("5.5", "0.5", "road, asked for at 20 pixels"),
        ("1.5", "1.5", "sky, asked for at 20 pixels"),
    ]


def test_pixels_that_people_gave_no_class_are_no_dots(study: Study) -> None:
    def refused(trial: Trial, stage: int) -> LabelledPixels:
        return LabelledPixels.of(names=["a.png"] * 3, y=[0] * 3, x=[0, 1, 2], label=[0, VOID, UNKNOWN], stage=stage)

    _, rows = grid(sheets(study, fill(study, ONE, mark=refused))[0])
    (dot,) = rows[0][0].all("circle")
    assert (dot.attributes["fill"], dot.all_text()) == ("rgb(10,20,30)", "sky, asked for at 10 pixels")


def test_a_picture_fills_the_frame_of_its_image_below_classes_and_stages(shown: tuple[Pictures, ...]) -> None:
    picks, root = shown[0], tree(shown[0])
    _, rows = grid(picks)
    assert [row[0].all("svg")[0].attributes["viewbox"] for row in rows] == ["0 0 6 2", "0 0 2 3"]
    for name, row in zip(TRAINING.labels, rows, strict=True):
        for cell in row:
            image = decoded(root, cell)
            assert np.abs(np.asarray(image, dtype=int) - TRAINING.colours[name]).max() < 12
            assert cell.all("svg")[0].attributes["aria-label"] == f"pixels picked in {name}"
    (control,), (slider,) = root.all("label"), root.all("input")
    assert control.attributes == {"class": "stages", "hidden": None}
    assert slider.attributes == {"type": "range", "min": "1", "max": "2", "value": "2"}
    assert [item.all_text() for item in root.all("li")] == ["sky", "road"]
    assert "background:rgb(200,100,50)" in picks.html
    assert picks.caption == (
        "Pixels asked for (study: camvid, deeplabv3plus small, pretrained none, seed 0), in the colour of the answered "
        "class."
    )


def test_one_stage_needs_no_slider_and_has_no_after(study: Study) -> None:
    picks, predictions = sheets(study, fill(study, ONE))
    assert tree(picks).all("label") == []
    assert grid(predictions)[0] == ["image", "truth", "10 pixels", "10 pixels: errors"]


def test_a_stage_that_is_not_stored_keeps_the_numbers_of_the_others(study: Study) -> None:
    spec = fill(study, "grid=[{seed: [0], budget: [30]}]")
    record = study.store.read_record(chain_path(spec, spec.trials()[0]))
    shutil.rmtree(study.store.folder("pick", record["stages"][0]["pick"]))
    picks, _ = sheets(study, spec)
    assert {group.attributes["data-stage"] for group in tree(picks).all("g")} == {"1", "3"}
    assert [slider.attributes["max"] for slider in tree(picks).all("input")] == ["3"]


def test_the_first_stored_seed_of_each_strategy_is_shown(study: Study) -> None:
    spec = fill(study, GRID)
    first = next(one for one in spec.trials() if (one.acquire.strategy, one.seed) == ("random", 0))
    (study.store.path / chain_path(spec, first)).unlink()
    picks, _ = sheets(study, spec)
    _, rows = grid(picks)
    assert [cell.all("circle")[0].attributes["cx"] for cell in rows[0]] == ["1.5", "2.5"]
    assert "pretrained none, seeds 0 and 1)" in picks.caption


def test_predictions_stand_before_and_after_with_their_errors(shown: tuple[Pictures, ...]) -> None:
    predictions, root = shown[1], tree(shown[1])
    heads, (cells,) = grid(predictions)
    after = ("margin, 20 pixels", "random, 20 pixels")
    ends = (head for name in after for head in (name, f"{name}: errors"))
    assert heads == ["image", "truth", "10 pixels", "10 pixels: errors", *ends]
    before, *others = (np.asarray(decoded(root, cell)).tolist() for cell in cells[2::2])
    assert before == PREDICTED["margin", 10].tolist()
    assert others == [PREDICTED["margin", 20].tolist(), PREDICTED["random", 20].tolist()]
    assert np.asarray(decoded(root, cells[1])).tolist() == TEST.labels["t.png"].tolist()
    # 0 is right, 1 wrong, 2 void.
    assert [np.asarray(decoded(root, cell)).tolist() for cell in cells[3::2]] == [
        [[0, 0, 1, 1], [0, 0, 1, 2]],
        [[0, 0, 0, 0], [0, 0, 0, 2]],
        [[1, 0, 0, 0], [0, 0, 0, 2]],
    ]
    assert [cell.all_text() for cell in cells] == ["", "", "", "43 % wrong", "", "0 % wrong", "", "14 % wrong"]
    assert predictions.caption == (
        "Predictions on camvid test before and after (study: camvid, deeplabv3plus small, pretrained none, seed 0); "
        "errors are orange, void is dark grey."
    )
    colours = np.asarray(decoded(root, cells[3]).convert("RGB"))
    right, wrong, void = ([int(value) for value in colours[place]] for place in ((0, 0), (0, 2), (1, 3)))
    assert right[0] == right[1] == right[2] > 200
    assert wrong[0] > wrong[1] > wrong[2] == 0
    assert void == [128, 128, 128]


def test_predictions_that_are_not_stored_leave_their_cells_empty(study: Study) -> None:
    spec = fill(study, GRID, predict=lambda trial: predict(trial) if trial.budget == 10 else {})
    _, (cells,) = grid(sheets(study, spec)[1])
    assert [bool(cell.nodes) for cell in cells] == [True] * 4 + [False] * 4


def test_an_error_map_counts_what_is_not_void(study: Study) -> None:
    errors, share = error_map(label_map("0112", "3..0"), label_map("0121", "3.0."), num_classes=4)
    # The prediction may be anything: where the truth is a class, a void prediction is wrong.
    assert errors.tolist() == [[0, 0, 1, 1], [0, 2, 1, 2]]
    assert errors.dtype == np.uint8
    assert share == 3 / 6
    assert error_map(label_map("01"), label_map("03"), num_classes=3)[0].tolist() == [[0, 2]]  # beyond the classes
    errors, share = error_map(label_map("01"), label_map(".."), num_classes=2)
    assert errors.tolist() == [[2, 2]]
    assert math.isnan(share)
    void = replace(TEST, labels={"t.png": label_map("..")})
    spec = fill(study, ONE, predict=lambda trial: {"t.png": label_map("01")}, shown=(TRAINING, {"test": void}))
    assert tree(sheets(study, spec)[1]).all("small")[0].all_text() == "void only"


def embedded(found: tuple[Pictures, ...]) -> list[str]:
    return re.findall(r"base64,([^\"]+)", "".join(one.html for one in found))


def check_identifiers(root: Node) -> None:
    """Every identifier is there once, and what is referred to is there."""
    assert len(set(root.identifiers)) == len(root.identifiers)
    assert set(root.identifiers) >= root.references


def test_a_picture_is_in_the_page_once(shown: tuple[Pictures, ...], kept: Study) -> None:
    assert sheets(kept, experiment(GRID)) == shown  # equal bytes
    pictures = embedded(shown)
    assert len(set(pictures)) == len(pictures) == 2 + 2 + 2 * 3  # training; image and truth; predictions, errors
    root = tree(*shown)
    assert len(root.all("svg")) == 2 * 2 + 8
    check_identifiers(root)


def test_settings_and_experiments_share_their_pictures(study: Study) -> None:
    varied = "acquire.strategy: [margin, random], acquire.pool_fraction: [0.1, 0.2], seed: [0], budget: [10, 20]"
    specs = [fill(study, f"grid=[{{{varied}}}]", *name) for name in ((), ("name=other",))]
    found = sheets(study, *specs, settings=4)
    assert len(found) == 2 * 4
    pictures = embedded(found)
    assert len(set(pictures)) == len(pictures) == 10
    check_identifiers(tree(*found))


def test_the_same_picture_of_images_of_two_sizes_keeps_both_frames(study: Study) -> None:
    names, shapes = ("a.png", "b.png"), {"a.png": (1, 1), "b.png": (2, 3)}
    same = Described(dict.fromkeys(names, (9, 9, 9)), dict.fromkeys(names, label_map("0")), shapes)
    (picks,) = sheets(study, fill(study, ONE, shown=(same, {})))
    sizes = {(one.attributes["width"], one.attributes["height"]) for one in tree(picks).all("image")}
    assert sizes == {("1", "1"), ("3", "2")}
    check_identifiers(tree(picks))


def test_names_are_escaped(study: Study) -> None:
    evil = "</svg><b>'&\""
    names = {f"{name}.png": f"{evil}{name}.png" for name in "abt"}

    def renamed(described: Described) -> Described:
        changed = ({names[name]: of for name, of in by.items()} for by in (described.colours, described.labels))
        return Described(*changed)

    def marked(trial: Trial, stage: int) -> LabelledPixels:
        pixels = mark(trial, stage)
        return replace(pixels, names=tuple(names.get(name, name) for name in pixels.names))

    described = renamed(TRAINING), {"test": renamed(TEST)}
    grid = 'grid=[{acquire.strategy: ["<b>\'&"], seed: [0], budget: [20]}]'
    spec = fill(study, grid, mark=marked, predict=lambda trial: {}, shown=described)
    path = chain_path(spec, spec.trials()[0])
    study.store.write_record(path, study.store.read_record(path) | {"class_names": [evil, "road"]})
    found = sheets(study, spec)
    assert len(found) == 2
    assert "<b>" not in "".join(one.html for one in found)
    root = tree(*found)
    assert [item.all_text() for item in root.all("li")] == [evil, "road"]
    assert {title.all_text() for title in root.all("title")} >= {f"{evil}, asked for at 10 pixels"}
    assert {svg.attributes["aria-label"] for svg in root.all("svg")} >= {f"truth of {names['t.png']}"}
    assert root.all("th")[0].all_text() == "<b>'&"


def test_a_few_settings_and_six_strategies_are_shown(study: Study) -> None:
    strategies = ", ".join(f"s{number}" for number in range(7))
    varied = f"acquire.strategy: [{strategies}], acquire.pool_fraction: [0.1, 0.2, 0.3], seed: [0], budget: [10]"
    spec = fill(study, f"grid=[{{{varied}}}]", shown=(TRAINING, {}))
    assert [grid(one)[0] for one in sheets(study, spec, settings=2)] == [
        [f"s{number}, acquire.pool_fraction={fraction}" for number in range(6)] for fraction in (0.1, 0.2)
    ]
    assert sheets(study, spec, settings=0) == ()


def test_without_descriptions_there_are_no_sheets(study: Study) -> None:
    assert sheets(study, experiment(GRID)) == ()  # never ran
    spec = fill(study, GRID, shown=())
    assert sheets(study, spec) == ()
    study.describe(spec, TRAINING, {"test": TEST})
    assert len(sheets(study, spec)) == 2
    whole = shutil.copytree(study.store.path / "split", study.store.path.parent / "whole")
    for damaged in ("description.json", "images/0.jpg", "labels/0.png"):
        for file in (study.store.path / "split").glob(f"*/{damaged}"):
            file.write_bytes(b"damaged")
        assert sheets(study, spec) == ()
        shutil.copytree(whole, study.store.path / "split", dirs_exist_ok=True)
        assert len(sheets(study, spec)) == 2
    shutil.rmtree(study.store.path / "split")
    assert sheets(study, spec) == ()
