"""Contact sheets: what is shown, once in the page, as HTML that a reader can trust."""

import base64
import io
import re
import shutil
from dataclasses import replace
from xml.etree.ElementTree import Element

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
from tests.support.pages import Tree, identifiers, text_of
from tests.support.sheets import GRID, ONE, PREDICTED, TEST, TRAINING, fill, label_map, predict
from tests.support.study import Described, Study, chain_path, experiment

pytestmark = pytest.mark.whole_report


def sheets(study: Study, *specs: Experiment, settings: int = 3) -> tuple[Pictures, ...]:
    results = study.results(*specs)
    return contact_sheets(study.store, results, load_chains(study.store, results), settings=settings)


@pytest.fixture(scope="module")
def shown(kept: Study) -> tuple[Pictures, ...]:
    """The sheets of two strategies and two stages: picks and predictions."""
    return sheets(kept, fill(kept, GRID))


def tree(*found: Pictures) -> Element:
    return Tree("".join(one.html for one in found)).root


def grid(sheet: Pictures) -> tuple[list[str], list[list[Element]]]:
    """Heads and, row by row, cells of a sheet."""
    (table,) = tree(sheet).findall(".//table")
    heads, *rows = table.findall(".//tr")
    return [text_of(head) for head in heads.findall(".//th")], [row.findall(".//td") for row in rows]


def decoded(root: Element, cell: Element) -> Image.Image:
    """The picture of a cell, which may be embedded in another one."""
    used = {use.attrib["href"] for use in cell.findall(".//use")}
    (shown,) = cell.findall(".//image") or [one for one in root.findall(".//image") if f"#{one.attrib['id']}" in used]
    _, _, data = str(shown.attrib["href"]).partition(";base64,")
    return loaded(io.BytesIO(base64.b64decode(data, validate=True)))


def test_every_labelled_pixel_of_a_shown_image_is_a_dot_in_its_frame_below_classes(shown: tuple[Pictures, ...]) -> None:
    heads, rows = grid(shown[0])
    assert heads == ["margin", "random"]
    assert [[len(cell.findall(".//circle")) for cell in row] for row in rows] == [[3, 3], [2, 2]]
    # The first is in the middle of pixel (0, 1), in the first colour of the palette.
    assert [
        (group.attrib["data-stage"], *(dot.attrib[name] for name in ("cx", "cy", "fill")), text_of(dot))
        for group in rows[0][0].findall(".//g")
        for dot in group.findall(".//circle")
    ] == [
        ("1", "1.5", "0.5", "rgb(10,20,30)", "sky, asked for at 10 pixels"),
        ("2", "5.5", "0.5", "rgb(200,100,50)", "road, asked for at 20 pixels"),
        ("2", "1.5", "1.5", "rgb(10,20,30)", "sky, asked for at 20 pixels"),
    ]

    picks, root = shown[0], tree(shown[0])
    assert [row[0].findall(".//svg")[0].attrib["viewbox"] for row in rows] == ["0 0 6 2", "0 0 2 3"]
    for name, row in zip(TRAINING.labels, rows, strict=True):
        for cell in row:
            image = decoded(root, cell)
            assert np.abs(np.asarray(image, dtype=int) - TRAINING.colours[name]).max() < 12
            assert cell.findall(".//svg")[0].attrib["aria-label"] == f"pixels picked in {name}"
    (slider,) = root.findall(".//input")
    assert slider.attrib == {"type": "range", "min": "1", "max": "2", "value": "2"}
    assert [text_of(item) for item in root.findall(".//li")] == ["sky", "road"]
    assert picks.caption == (
        "Pixels asked for (study: camvid, deeplabv3plus small, pretrained none, seed 0), coloured by the class "
        "answered."
    )


def test_one_stage_needs_no_slider_and_has_no_after_and_pixels_without_a_class_are_no_dots(study: Study) -> None:
    def refused(trial: Trial, stage: int) -> LabelledPixels:
        return LabelledPixels.of(names=["a.png"] * 3, y=[0] * 3, x=[0, 1, 2], label=[0, VOID, UNKNOWN], stage=stage)

    picks, predictions = sheets(study, fill(study, ONE, mark=refused))
    assert tree(picks).findall(".//label") == []
    assert grid(predictions)[0] == ["image", "truth", "10 pixels", "10 pixels: errors"]
    (dot,) = grid(picks)[1][0][0].findall(".//circle")
    assert text_of(dot) == "sky, asked for at 10 pixels"


def test_a_stage_that_is_not_stored_keeps_the_numbers_of_the_others_and_the_first_stored_seed_is_shown(
    study: Study,
) -> None:
    spec = fill(study, "grid=[{acquire.strategy: [margin, random], seed: [0, 1], budget: [30]}]")
    first, _, other, _ = spec.trials()
    record = study.store.read_record(chain_path(spec, first))
    shutil.rmtree(study.store.folder("pick", record["stages"][0]["pick"]))
    (study.store.path / chain_path(spec, other)).unlink()
    picks = sheets(study, spec)[0]
    _, rows = grid(picks)
    assert [group.attrib["data-stage"] for group in rows[0][0].findall(".//g")] == ["1", "3"]
    assert [slider.attrib["max"] for slider in tree(picks).findall(".//input")] == ["3"]
    assert [cell.findall(".//circle")[0].attrib["cx"] for cell in rows[0]] == ["1.5", "2.5"]
    assert "pretrained none, seeds 0 and 1)" in picks.caption


def test_predictions_stand_before_and_after_with_their_errors(shown: tuple[Pictures, ...]) -> None:
    predictions, root = shown[1], tree(shown[1])
    heads, (cells,) = grid(predictions)
    after = ("margin, 20 pixels", "random, 20 pixels")
    ends = (head for name in after for head in (name, f"{name}: errors"))
    assert heads == ["image", "truth", "10 pixels", "10 pixels: errors", *ends]
    maps = TEST.labels["t.png"], *(PREDICTED[place] for place in (("margin", 10), ("margin", 20), ("random", 20)))
    found = [np.asarray(decoded(root, cell)).tolist() for cell in (cells[1], *cells[2::2])]
    assert found == [one.tolist() for one in maps]
    # 0 is right, 1 wrong, 2 void.
    assert [np.asarray(decoded(root, cell)).tolist() for cell in cells[3::2]] == [
        [[0, 0, 1, 1], [0, 0, 1, 2]],
        [[0, 0, 0, 0], [0, 0, 0, 2]],
        [[1, 0, 0, 0], [0, 0, 0, 2]],
    ]
    assert [text_of(cell) for cell in cells] == ["", "", "", "43 % wrong", "", "0 % wrong", "", "14 % wrong"]
    assert predictions.caption == (
        "Predictions on camvid test before and after (study: camvid, deeplabv3plus small, pretrained none, seed 0); "
        "errors are orange, void is dark grey."
    )
    colours = np.asarray(decoded(root, cells[3]).convert("RGB"))
    right, wrong, void = ([int(value) for value in colours[place]] for place in ((0, 0), (0, 2), (1, 3)))
    assert right[0] == right[1] == right[2] > 200
    assert wrong[0] > wrong[1] > wrong[2] == 0
    assert void == [128, 128, 128]


def test_an_error_map_counts_what_is_not_void(study: Study) -> None:
    errors, share = error_map(label_map("0112", "3..0"), label_map("0121", "3.0."), num_classes=4)
    # The prediction may be anything: where the truth is a class, a void prediction is wrong.
    assert (errors.tolist(), share) == ([[0, 0, 1, 1], [0, 2, 1, 2]], 3 / 6)
    assert error_map(label_map("01"), label_map("03"), num_classes=3)[0].tolist() == [[0, 2]]  # beyond the classes
    void = replace(TEST, labels={"t.png": label_map("..")})
    spec = fill(study, ONE, predict=lambda trial: {"t.png": label_map("01")}, shown=(TRAINING, {"test": void}))
    assert text_of(tree(sheets(study, spec)[1]).findall(".//small")[0]) == "void only"


def embedded(found: tuple[Pictures, ...]) -> int:
    """How many pictures there are, each once."""
    pictures = re.findall(r"base64,([^\"]+)", "".join(one.html for one in found))
    assert len(set(pictures)) == len(pictures)
    return len(pictures)


def test_a_picture_is_in_the_page_once_which_settings_and_experiments_share(
    shown: tuple[Pictures, ...], kept: Study, study: Study
) -> None:
    assert sheets(kept, experiment(GRID)) == shown  # equal bytes
    assert embedded(shown) == 2 + 2 + 2 * 3  # training; image and truth; predictions, errors
    root = tree(*shown)
    assert identifiers(root)
    assert len(root.findall(".//svg")) == 2 * 2 + 8
    varied = "acquire.strategy: [margin, random], acquire.pool_fraction: [0.1, 0.2], seed: [0], budget: [10, 20]"
    specs = [fill(study, f"grid=[{{{varied}}}]", *name) for name in ((), ("name=other",))]
    found = sheets(study, *specs, settings=4)
    assert (len(found), embedded(found)) == (2 * 4, 10)
    assert identifiers(tree(*found))
    names, shapes = ("a.png", "b.png"), {"a.png": (1, 1), "b.png": (2, 3)}
    same = Described(dict.fromkeys(names, (9, 9, 9)), dict.fromkeys(names, label_map("0")), shapes)
    root = tree(*sheets(study, fill(study, ONE, "name=sizes", shown=(same, {}))))  # equal images keep both frames
    assert identifiers(root)
    assert {one.attrib["width"] for one in root.findall(".//image")} == {"1", "3"}


def test_names_are_escaped(study: Study) -> None:
    evil = "</svg><b>'&\""
    described = Described({f"{evil}.png": (0, 0, 250)}, {f"{evil}.png": label_map("0011")})

    def marked(trial: Trial, stage: int) -> LabelledPixels:
        return LabelledPixels.of(names=[f"{evil}.png"], y=[0], x=[stage], label=[0], stage=stage)

    grid = 'grid=[{acquire.strategy: ["<b>\'&"], seed: [0], budget: [20]}]'
    spec = fill(study, grid, mark=marked, predict=lambda trial: {}, shown=(described, {"test": described}))
    path = chain_path(spec, spec.trials()[0])
    study.store.write_record(path, study.store.read_record(path) | {"class_names": [evil, "road"]})
    found = sheets(study, spec)
    assert len(found) == 2
    assert "<b>" not in "".join(one.html for one in found)
    root = tree(*found)
    assert [text_of(item) for item in root.findall(".//li")] == [evil, "road"]
    assert text_of(root.findall(".//title")[0]) == f"{evil}, asked for at 10 pixels"
    labels = {svg.attrib["aria-label"] for svg in root.findall(".//svg")}
    assert labels >= {f"truth of {evil}.png", f"pixels picked in {evil}.png"}
    assert text_of(root.findall(".//th")[0]) == "<b>'&"


def test_a_few_settings_and_six_strategies_are_shown(study: Study) -> None:
    strategies = ", ".join(f"s{number}" for number in range(7))
    varied = f"acquire.strategy: [{strategies}], acquire.pool_fraction: [0.1, 0.2, 0.3], seed: [0], budget: [10]"
    spec = fill(study, f"grid=[{{{varied}}}]", shown=(TRAINING, {}))
    assert [grid(one)[0] for one in sheets(study, spec, settings=2)] == [
        [f"s{number}, acquire.pool_fraction={fraction}" for number in range(6)] for fraction in (0.1, 0.2)
    ]
    assert sheets(study, spec, settings=0) == ()


def test_without_descriptions_there_are_no_sheets_and_without_a_prediction_an_empty_cell(study: Study) -> None:
    assert sheets(study, experiment(GRID)) == ()  # never ran
    spec = fill(study, GRID, shown=(), predict=lambda trial: predict(trial) if trial.budget == 10 else {})
    assert sheets(study, spec) == ()
    study.describe(spec, TRAINING, {"test": TEST})
    _, predictions = sheets(study, spec)
    assert [len(cell) > 0 for cell in grid(predictions)[1][0]] == [True] * 4 + [False] * 4  # not stored at 20 pixels
    for damaged in ("description.json", "images/0.jpg", "labels/0.png"):
        files = {file: file.read_bytes() for file in (study.store.path / "split").glob(f"*/{damaged}")}
        for file in files:
            file.write_bytes(b"damaged")
        assert sheets(study, spec) == ()
        for file, content in files.items():
            file.write_bytes(content)
