"""Chains of the reported experiments, with their records."""

from collections.abc import Iterator
from dataclasses import dataclass

from pixelpick_ray.config.trial import Trial
from pixelpick_ray.report.cells import Line, line_of
from pixelpick_ray.report.points import Point
from pixelpick_ray.report.rows import Results
from pixelpick_ray.store import Store
from pixelpick_ray.store.records import ChainRecord, StageRecord, read_chain


@dataclass(frozen=True)
class ReportedChain:
    """The largest trial of a chain, and the chain's record, None if it never ran."""

    point: Point
    trial: Trial
    record: ChainRecord | None

    @property
    def line(self) -> Line:
        """The line of its trials."""
        return line_of(self.point)

    def pick_keys(self) -> Iterator[tuple[int, str | None]]:
        """Yield budget and pick key of each stage, first pixels included; the key is None if not picked yet."""
        keys = () if self.record is None else self.record.picks
        for stage in range(self.trial.num_stages):
            yield self.trial.budget_of(stage), keys[stage] if stage < len(keys) else None

    @property
    def stages(self) -> tuple[StageRecord, ...]:
        """The recorded stages; none if it never ran."""
        return () if self.record is None else self.record.stages

    @property
    def training_description(self) -> str | None:
        """Key of the description of the training images."""
        return None if self.record is None else self.record.training_description

    def evaluated_description(self, split: str) -> str | None:
        """Return the key of the description of an evaluated split."""
        return None if self.record is None else self.record.evaluated_description(split)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; none if it never ran."""
        return () if self.record is None else self.record.class_names


def load_chains(store: Store, results: Results) -> tuple[ReportedChain, ...]:
    """Read every chain that picks pixels, up to its largest budget; full supervision picks none."""
    longest: dict[tuple[str, str], tuple[Point, Trial]] = {}
    for point, trial in results.trials.items():
        if trial.budget == "full":
            continue
        key = point.experiment, trial.chain_id
        if key not in longest or trial.num_stages > longest[key][1].num_stages:
            longest[key] = point, trial
    experiments = {experiment.name: experiment for experiment in results.experiments}
    return tuple(
        ReportedChain(point, trial, read_chain(store, experiments[point.experiment], trial.chain_id))
        for point, trial in longest.values()
    )
