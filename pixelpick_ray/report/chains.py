"""The chains that a report is about, as their records tell them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.rows import Results, read_chain
from pixelpick_ray.store import Store


@dataclass(frozen=True)
class Chain:
    """The largest trial of a chain, and the chain's record, which is empty but for its lists when it never ran."""

    point: Point
    trial: Trial
    record: dict[str, Any]

    @property
    def line(self) -> Line:
        """The line that its trials lie on."""
        return line_of(self.point)

    def pick_keys(self) -> Iterator[tuple[int, str | None]]:
        """The budget and the key of the pixels of each stage, the first of all among them; None: not picked yet."""
        keys = [self.record.get("initial"), *(stage.get("pick") for stage in self.record["stages"])]
        first, step = self.trial.acquire.initial_pixels, self.trial.acquire.pixels_per_stage
        for stage in range(self.trial.num_stages):
            yield first + stage * step, keys[stage] if stage < len(keys) else None


def load_chains(store: Store, results: Results) -> tuple[Chain, ...]:
    """Every chain that asks for pixels, up to its largest budget; full supervision asks for none."""
    longest: dict[tuple[str, str], tuple[Point, Trial]] = {}
    for point, trial in results.trials.items():
        if trial.budget == "full":
            continue
        key = point.experiment, trial.chain_id
        if key not in longest or trial.num_stages > longest[key][1].num_stages:
            longest[key] = point, trial
    experiments = {experiment.name: experiment for experiment in results.experiments}
    return tuple(
        Chain(
            point, trial, read_chain(store, experiments[point.experiment], trial) or {"stages": [], "class_names": []}
        )
        for point, trial in longest.values()
    )
