"""Make docs/pictures: the page where people answer, predictions before and after a few labels, and one curve.

``python docs/pictures.py [page] [prediction] [curve]``, by hand; all three without a name. `page` needs chromium and
chromedriver. The first two run experiments on generated street scenes, the curve is drawn from `results/`.
"""

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pixelpick_ray as pp  # noqa: E402
from pixelpick_ray.annotate.desk import Desk  # noqa: E402
from pixelpick_ray.data.description import read_description  # noqa: E402
from pixelpick_ray.data.labels import LabelledPixels  # noqa: E402
from pixelpick_ray.report.chains import load_chains  # noqa: E402
from pixelpick_ray.report.rows import load_results  # noqa: E402
from pixelpick_ray.store import Store  # noqa: E402
from pixelpick_ray.tasks import PIXELS, prediction_file  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
CURVE = ROOT / "results" / "frozen-linear-camvid" / "rows.csv"
ANSWERED = 12  # questions, up to one that shows a street by day
ACKNOWLEDGED = "return window.annotation.acknowledged"
BACKBONE = "tf_efficientnet_lite0"
NAMES = {"margin": "margin", "least_confidence": "least confidence", "entropy": "entropy", "random": "random"}
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#666666")  # told apart by people who are colour-blind


def page(folder: Path) -> None:
    """The page at a question of `annotate-quickstart`."""
    from tests.support.annotation_server import TOKEN, running
    from tests.support.browser import ENTER, browsing, wait_for

    experiment = pp.load("experiments/annotate-quickstart.yaml", **{"dataset.size": [192, 256]})
    store = str(folder / "store")
    pp.run(experiment, store=store, data=folder / "data", runs=folder / "runs", local=True)
    desk = Desk(pp.plan(experiment), Store(store), folder / "data")
    with running(desk, Store(store)) as site, browsing(folder / "profile") as browser:
        browser.prefer("light")
        browser.visit(f"http://127.0.0.1:{site.port}/{TOKEN}/", 1200, 700)
        browser.type(*"Ada", ENTER)
        wait_for(lambda: (browser.run("return window.annotation") or {}).get("shown", 0) > 0)
        for answered in range(ANSWERED):
            time.sleep(1.5)  # the page tells how fast somebody is
            browser.type("r")
            wait_for(lambda count=answered: len(browser.run(ACKNOWLEDGED)) > count)
        time.sleep(1.5)
        content = base64.b64decode(browser.call("GET", "/screenshot"))
    _save_picture(Image.open(io.BytesIO(content)), "page.png")


def prediction(folder: Path) -> None:
    """Test images of `quickstart` with predictions after its first stage and after its last."""
    experiment = pp.load(
        "experiments/quickstart.yaml",
        **{"grid": [{"acquire.strategy": ["margin"], "seed": [0], "budget": [2, 14]}]},
    )
    store = Store(folder / "store")
    pp.run(experiment, store=store.address, data=folder / "data", runs=folder / "runs", local=True)
    results = load_results(store, [experiment])
    (chain,) = load_chains(store, results)
    report = experiment.evaluate.report
    trained, tested = (
        read_description(store, key) for key in (chain.training_description, chain.evaluated_description(report))
    )
    if trained is None or tested is None:
        raise SystemExit("the store has no description of the splits")
    keys = [key for _, key in chain.pick_keys()]
    figure, axes = plt.subplots(2, 5, figsize=(11.5, 4.1), layout="constrained")
    last = len(chain.stages) - 1
    for row, axis in enumerate(axes):
        number = (0, 2)[row]
        axis[0].imshow(_rgb(trained.images[number]))
        for key in keys:
            files = store.files("pick", str(key), [PIXELS])
            if files is not None:
                pixels = LabelledPixels.read(io.BytesIO(files[PIXELS]))
                of = pixels.of_image(trained.names[number])
                colours = np.asarray(trained.facts["palette"])[pixels.label[of]] / 255
                axis[0].scatter(pixels.x[of], pixels.y[of], c=colours, s=34, edgecolors="white", linewidths=1.2)
        axis[1].imshow(_rgb(tested.images[number]))
        for column, stage in ((2, chain.stages[0]), (3, chain.stages[last])):
            name = prediction_file(tested.names[number])
            files = store.files("evaluation", stage.evaluations[report], [name])
            axis[column].imshow(_rgb((files or {})[name]), interpolation="nearest")
        axis[4].imshow(_rgb(tested.labels[number]), interpolation="nearest")
        for one in axis:
            one.set_axis_off()
    heads = (
        "training image,\n14 labelled pixels",
        "test image",
        f"prediction, {chain.stages[0].budget} labelled\npixels per image",
        f"prediction, {chain.stages[last].budget} labelled\npixels per image",
        "ground truth",
    )
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=11)
    _save(figure, "prediction.png")


def curve(folder: Path) -> None:
    """mIoU on CamVid's test split over labelled pixels, by strategy, from the rows of `results/`."""
    rows = pd.read_csv(CURVE, dtype={"budget": str})
    rows = rows[
        (rows.metric == "miou") & (rows.split == "test") & (rows.checkpoint == "last") & (rows.backbone == BACKBONE)
    ]
    figure, axis = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    for (strategy, name), colour in zip(NAMES.items(), COLOURS, strict=True):
        found = rows[rows.strategy == strategy]
        budgets = found.budget.astype(int)
        grouped = (100 * found.value).groupby(budgets)
        mean, deviation, seeds = grouped.mean(), grouped.std(), grouped.count()
        axis.plot(mean.index, mean, color=colour, marker="o", markersize=4, label=name)
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("labelled pixels per image (of 172,800)")
    axis.set_ylabel("mIoU on the test split (%)")
    axis.set_title(f"CamVid, linear head on a frozen EfficientNet-Lite0, {seeds.min()} seeds", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, "curve.png")


def _rgb(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")


def _save(figure: Figure, name: str) -> None:
    target = io.BytesIO()
    figure.savefig(target, dpi=110)
    plt.close(figure)
    _save_picture(Image.open(target), name)


def _save_picture(picture: Image.Image, name: str) -> None:
    picture.convert("RGB").save(PICTURES / name, optimize=True)
    print(f"{PICTURES / name}: {(PICTURES / name).stat().st_size / 1000:.0f} kB")


MAKERS = {"page": page, "prediction": prediction, "curve": curve}

if __name__ == "__main__":
    for one in sys.argv[1:] or MAKERS:
        with tempfile.TemporaryDirectory() as place:
            MAKERS[one](Path(place))
