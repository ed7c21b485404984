"""Write the README's table from ``results/frozen-*`` and the published numbers, and what experiments cost into
docs/reference/experiments.md, between markers: ``make docs``.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
README, COSTS = ROOT / "README.md", ROOT / "docs" / "reference" / "experiments.md"
PUBLISHED = ROOT / "pixelpick_ray" / "report" / "published" / "pixelpick.csv"
BUDGETS = ("20", "60", "100", "full")
SHOWN = ("margin", "random")
BY = ["experiment", "architecture", "backbone", "strategy"]
ARCHITECTURES = {"deeplabv3plus": "DeepLabv3+", "fpn": "FPN", "mlp": "MLP"}
BACKBONES = {
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
    "mobilenetv2_100": "MobileNetV2",
    "resnet50": "ResNet-50",
}

from costs import FLOPS_PER_SECOND, cost_of  # noqa: E402

from pixelpick_ray.config.experiment import Experiment, load_experiment  # noqa: E402
from pixelpick_ray.models.backbones import PACKAGED  # noqa: E402


def experiment_files() -> list[Path]:
    """Those that come with the project, without what they extend and what searches have written."""
    return [path for path in ROOT.glob("experiments/**/*.yaml") if path.parent.name not in ("base", "found")]


def experiments() -> str:
    """A row an experiment file: what it is, what it needs, and what it costs."""
    rate = f"{FLOPS_PER_SECOND / 1e12:.0f}"
    lines = [
        f"| file | what | needs | stages to train | PFLOP | GPU hours at {rate} TFLOP/s |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for path in sorted(experiment_files(), key=lambda path: (len(path.parts), path)):
        experiment = load_experiment(path)
        cost = cost_of(experiment)
        stages = f"{cost.fits} ({cost.fits_unshared} one by one)"
        numbers = f"{_two_digits(cost.flops / 1e15)} | {_two_digits(cost.hours)}"
        name = path.relative_to(ROOT).as_posix()
        lines.append(f"| `{name}` | {experiment.title} | {_needs(experiment)} | {stages} | {numbers} |")
    return "\n".join(lines) + "\n"


def _needs(experiment: Experiment) -> str:
    trials = experiment.trials()
    data = {trial.dataset.path or trial.dataset.name for trial in trials} - {"scenes"}
    models = {(trial.model.backbone, trial.model.pretrained) for trial in trials if trial.model.pretrained != "none"}
    weights = {" ".join(model) for model in models - PACKAGED.keys()}
    return ", ".join(f"`{name}`" for name in (*sorted(data), *sorted(weights))) or "nothing"


def _two_digits(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 10 else np.format_float_positional(float(f"{value:.2g}"), trim="-")


def results() -> str:
    """A row for each model and strategy of ``results/frozen-*``, then the published ones. Full supervision of a model
    stands in the row of margin: it has no strategy.
    """
    heads = ["model", "input", "pixels", *(f"{budget}" for budget in BUDGETS)]
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- | --- | {' | '.join(['---:'] * len(BUDGETS))} |"]
    scales = {one.name: one.model.input_scale or 1.0 for one in map(load_experiment, experiment_files())}
    cells, links = defaultdict[tuple[str, float, str], dict[str, str]](dict), dict[tuple[str, float, str], str]()
    for path in sorted(ROOT.glob("results/frozen-*/rows.csv")):
        rows = pd.read_csv(path, dtype={"budget": str, "strategy": str}).fillna({"strategy": "margin"})
        wanted = (rows.metric == "miou") & (rows.split == "test") & (rows.checkpoint == "last")
        wanted &= rows.strategy.isin(SHOWN) & rows.budget.isin(BUDGETS) & (rows.pretrained != "none")
        for (name, architecture, backbone, strategy), found in rows[wanted].groupby(BY, sort=False):
            head = ARCHITECTURES.get(architecture, architecture)
            row = f"{head} head, frozen {BACKBONES.get(backbone, backbone)}", scales[name], strategy
            cells[row] |= {budget: _cell(one) for budget, one in (100 * found.value).groupby(found.budget)}
            if set(found.budget) != {"full"} or row not in links:
                links[row] = f"results/{path.parent.name}/table.csv"
    for row in sorted(cells):
        model, scale, strategy = row
        lines.append(_row(f"[{model}]({links[row]})", f"× {scale:g}", strategy, cells[row]))
    published = pd.read_csv(PUBLISHED, dtype={"budget": str})
    published = published[published.dataset == "camvid"]
    for (architecture, backbone), found in published.groupby(["architecture", "backbone"], sort=False):
        told = {one.budget: f"{one.miou_percent:.1f} ± {one.std_percent:.1f}" for one in found.itertuples()}
        lines.append(_row(f"published {ARCHITECTURES[architecture]}, {BACKBONES[backbone]}", "× 1", "margin", told))
    return "\n".join(lines) + "\n"


def _cell(values: "pd.Series[float]") -> str:
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def _row(model: str, size: str, strategy: str, cells: dict[str, str]) -> str:
    return f"| {model} | {size} | {strategy} | {' | '.join(cells.get(budget, '–') for budget in BUDGETS)} |"


def between(page: str, name: str, text: str) -> str:
    """The page with other text between its markers."""
    markers = re.compile(rf"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
    return markers.sub(lambda match: f"{match[1]}{text}{match[2]}", page)


if __name__ == "__main__":
    for path, name, write in ((README, "results", results), (COSTS, "experiments", experiments)):
        path.write_text(between(path.read_text(encoding="utf-8"), name, write()), encoding="utf-8")
