"""Put the experiments' costs and the tables of ``results/*/table.md`` between the README's markers: ``make docs``."""

import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from costs import FLOPS_PER_SECOND, cost_of  # noqa: E402

from pixelpick_ray.config.experiment import Experiment, load_experiment  # noqa: E402
from pixelpick_ray.models.backbones import PACKAGED  # noqa: E402


def experiments() -> str:
    """A row an experiment file: what it is, what it needs, and what it costs."""
    rate = f"{FLOPS_PER_SECOND / 1e12:.0f}"
    lines = [
        f"| file | what | needs | stages to train | PFLOP | GPU hours at {rate} TFLOP/s |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    files = (path for path in ROOT.glob("experiments/**/*.yaml") if path.parent.name != "found")
    for path in sorted(files, key=lambda path: (len(path.parts), path)):
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
    """The first table of every result, under its folder's name."""
    parts = []
    for path in sorted(ROOT.glob("results/*/table.md")):
        folder = path.parent.relative_to(ROOT)
        parts.append(f"**[{folder}]({folder})**\n\n{first_table(path.read_text(encoding='utf-8'))}\n")
    return "\n".join(parts)


def first_table(text: str) -> str:
    """The first Markdown table of a report, without its caption."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "\n".join(lines[start:end])


def updated(readme: str) -> str:
    """The README with the costs and the results of today."""
    for name, text in (("experiments", experiments()), ("results", results())):
        markers = re.compile(rf"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
        readme = markers.sub(lambda match, text=text: f"{match[1]}{text}{match[2]}", readme)
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
