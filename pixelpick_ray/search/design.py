"""Design of a search: the split that samples are scored on, their trials, and the levels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pixelpick_ray.active.metrics import area_under_curve
from pixelpick_ray.checks import check_facts, check_trial
from pixelpick_ray.config.canonical import canonical_json
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.config.search import SearchSpec, value_text
from pixelpick_ray.config.trial import EvaluateSpec, Trial
from pixelpick_ray.data.dataset import FileDataset
from pixelpick_ray.data.datasets import DatasetFacts, known_facts, open_dataset, training_split
from pixelpick_ray.data.held_out import HELD_OUT, facts_with_held_out
from pixelpick_ray.data.streams import stream
from pixelpick_ray.errors import SpecError
from pixelpick_ray.planning import Plan, make_plan, value_at

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Level:
    """A point at which samples are scored: the end of a budget, or an epoch of the first stage.

    ``resource`` is the unit of schedulers: labelled pixels per image relative to the first level, where an epoch counts
    as its share of the first stage.
    """

    budget: int | str
    epoch: int | None
    resource: float

    @property
    def label(self) -> str:
        """Text for display."""
        at = "full supervision" if self.budget == "full" else f"{self.budget} px"
        return at if self.epoch is None else f"{at}, epoch {self.epoch}"


@dataclass(frozen=True)
class Search:
    """A search, ready to run; samples are trials of ``judged``, the experiment evaluated on the search's split only."""

    experiment: Experiment
    spec: SearchSpec
    judged: Experiment

    @property
    def split(self) -> str:
        """The split that samples are scored on."""
        return self.judged.evaluate.report

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds for which each sample is trained."""
        return tuple(dict.fromkeys(self.experiment.grid[0]["seed"]))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Levels at which samples are scored, in order."""
        last = self.spec.metric.budget
        budgets = sorted({b for b in self.experiment.grid[0]["budget"] if b == "full" or last is None or b <= last})
        first, epochs = budgets[0], self.experiment.trials()[0].epochs
        start = first if first == "full" else self.experiment.acquire.initial_pixels
        found: list[tuple[int | str, int | None]] = [(start, epoch) for epoch in self.spec.epochs]
        found += [(budget, None) for budget in budgets]
        amounts = [(1 if budget == "full" else int(budget)) * (epoch or epochs) / epochs for budget, epoch in found]
        return tuple(
            Level(budget, epoch, amount / amounts[0]) for (budget, epoch), amount in zip(found, amounts, strict=True)
        )

    @property
    def metric_text(self) -> str:
        """The metric that scores samples, for display."""
        last = self.levels[-1].label
        return f"mIoU at {last}" if self.spec.metric.name == "miou" else f"area under the budget curve to {last}"

    def score(self, mious: Sequence[float]) -> float:
        """Score a sample from its mIoU (0 to 1) at the first levels: the last value, or the area under the curve."""
        if self.spec.metric.name == "miou":
            return mious[-1]
        ends = [(level.budget, value) for level, value in zip(self.levels, mious, strict=False) if level.epoch is None]
        if len(ends) < 2:
            return mious[-1]
        return area_under_curve([float(budget) for budget, _ in ends], [value for _, value in ends])

    def trial(self, values: Mapping[str, Any], *, seed: int, budget: int | str) -> Trial:
        """Return the trial of a configuration. Raises SpecError if its values are incompatible."""
        trial = self.judged.trial_at({**values, "seed": seed, "budget": budget}, where="")
        check_trial(self.judged, trial)
        return trial

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise SpecError if the values of a configuration are incompatible at any budget of the grid."""
        for budget in self.experiment.grid[0]["budget"]:
            self.trial(values, seed=self.seeds[0], budget=budget)

    def check_images(self, data_path: Path) -> None:
        """Raise SpecError if an image of the search's split is also in the training split or the reported one."""
        dataset = open_dataset(self.experiment.dataset, data_path)
        if not isinstance(dataset, FileDataset) or self.split == HELD_OUT:
            return
        evaluate, training = self.experiment.evaluate, training_split(dataset, self.experiment.dataset)
        judged = _images(dataset, self.split)
        for split, what in ((training, "trained on"), (evaluate.split_of(evaluate.report), "reported")):
            if both := sorted(judged & _images(dataset, split)):
                raise SpecError(
                    f"search.split: {len(both)} images of {self.split} are also in {split}, which is {what}, e.g. "
                    f"{both[0]}; use another split, or search.held_out: {HELD_OUT_SHARE} for a share of the training "
                    "images"
                )

    @cached_property
    def own_values(self) -> dict[str, Any] | None:
        """The file's own values, which make the first sample; None unless all of them are in the space."""
        tree = json.loads(canonical_json(self.judged.trials()[0].model_dump(mode="json")))
        found: dict[str, Any] = {}
        for path, domain in self.spec.space.items():
            own = value_at(tree, path)
            values = [own] if domain.is_range else [one for one in domain.values if self._is_own(path, one)]
            if not values or not domain.contains(values[0]):
                return None
            found[path] = values[0]
        return found

    def _is_own(self, path: str, value: Any) -> bool:
        """Whether a value gives the file's own trial; it may omit defaults."""
        own = self.judged.trials()[0]
        return self.judged.trial_at({"seed": own.seed, "budget": own.budget, path: value}, where="") == own

    @cached_property
    def ends_plan(self) -> Plan:
        """The chains that can be checked beforehand: the file's own, and one for each value listed in the space.

        Raises SpecError for incompatible values, of any point if the search is a grid.
        """
        last = self.levels[-1].budget
        trials = []
        for seed in self.seeds:
            trials.append(self.trial({}, seed=seed, budget=last))
            for path, position, value in self.spec.ends():
                with self.spec.naming(path, position):
                    trials.append(self.trial({path: value}, seed=seed, budget=last))
        if self.spec.searcher == "grid":
            for index in range(self.spec.size):
                self._check_point(index)
        return make_plan(self.judged, trials)

    def _check_point(self, index: int) -> None:
        point = self.spec.point(index)
        try:
            self.check(point)
        except SpecError as error:
            text = ", ".join(f"{path}: {value_text(value)}" for path, value in point.items())
            raise SpecError(
                "\n".join(f"search.space: {{{text}}}: {line}" for line in str(error).splitlines())
            ) from None

    def drawn(self, index: int) -> dict[str, Any]:
        """Return the configuration of a sample by its number: a grid point, the file's own, or a random one."""
        if self.spec.searcher == "grid":
            return dict(self.spec.point(index))
        if index == 0 and self.own_values is not None:
            return self.own_values
        chance = stream(self.spec.seed, "search", index)
        return {path: domain.draw(chance) for path, domain in self.spec.space.items()}

    @property
    def num_stages(self) -> int:
        """Number of stages up to the last level in a chain of the file's own configuration."""
        return self.trial({}, seed=self.seeds[0], budget=self.levels[-1].budget).num_stages

    @property
    def shares_stages(self) -> bool:
        """Whether configurations may share their first training and differ only in how they pick."""
        return any(path.partition(".")[0] == "acquire" for path in self.spec.space)


def make_search(experiment: Experiment) -> Search:
    """Set up the search of an experiment; needs no data. Raises SpecError if there is no usable split to score on."""
    spec = experiment.search
    if spec is None:
        raise AssertionError("the experiment has no search")
    split, share = _judged_on(experiment, spec)
    evaluate = experiment.evaluate
    size = evaluate.splits[evaluate.report].model_copy(update={"split": None})
    judged = experiment.model_copy(
        update={
            "search": None,
            "dataset": experiment.dataset.model_copy(update={"held_out": share}),
            "evaluate": EvaluateSpec(splits={split: size}, when=evaluate.when, report=split),
        }
    )
    search, facts = Search(experiment, spec, judged), known_facts(experiment.dataset.name)
    if facts is not None:
        check_splits(search, facts)
    return search


def check_splits(search: Search, facts: DatasetFacts) -> None:
    """Raise SpecError if the data set lacks an evaluated split or the search's, or if the latter is trained on.

    `facts` are those of the data set with nothing held out; if it is described next to its files, they are known only
    once these are read.
    """
    experiment, split = search.experiment, search.split
    check_facts(experiment, experiment.trials()[0], facts_with_held_out(facts, experiment.dataset))
    trained = experiment.dataset.split or facts.train_split
    instead = f"or search.held_out: {HELD_OUT_SHARE} for a share of the training images"
    if search.spec.held_out is not None and HELD_OUT in facts.splits:
        raise SpecError(
            f"search.held_out: {facts.name} already has a split {HELD_OUT!r}; use search.split: {HELD_OUT}, or "
            "rename it"
        )
    known = facts_with_held_out(facts, search.judged.dataset).splits
    if split not in known:
        raise SpecError(
            f"search.split: {facts.name} has no split {split!r}; it has {', '.join(known)}; use one that is neither "
            f"trained on nor reported, {instead}"
        )
    if split == trained:
        raise SpecError(
            f"search.split: {split} is the training split; use one that is neither trained on nor reported, {instead}"
        )


def _judged_on(experiment: Experiment, spec: SearchSpec) -> tuple[str, float | None]:
    """The split that samples are scored on, and the share of training images held out."""
    evaluate, dataset = experiment.evaluate, experiment.dataset
    reported = evaluate.split_of(evaluate.report)
    if spec.held_out is not None and dataset.held_out is not None:
        raise SpecError("search.held_out: conflicts with dataset.held_out; keep only one of them")
    if spec.held_out is not None or spec.split is not None:
        split = HELD_OUT if spec.split is None else spec.split
        share = dataset.held_out if spec.held_out is None else spec.held_out
    elif dataset.held_out is not None and reported != HELD_OUT:
        split, share = HELD_OUT, dataset.held_out
    else:
        split, share = _usual(experiment, reported)
    if split == reported:
        raise SpecError(f"search.split: {reported} is the reported split; give a different one to score samples on")
    return split, share


def _usual(experiment: Experiment, reported: str) -> tuple[str, float | None]:
    """The default: the validation split if it is free, else a share of the training images."""
    facts = known_facts(experiment.dataset.name)
    if facts is None:
        raise SpecError(
            f"search.split: is required for {experiment.dataset.name}; give a split other than {reported}, which is "
            f"reported, or search.held_out: {HELD_OUT_SHARE} for a share of the training images"
        )
    free = "val" in facts.splits and "val" not in (reported, experiment.dataset.split)
    return ("val", experiment.dataset.held_out) if free else (HELD_OUT, experiment.dataset.held_out or HELD_OUT_SHARE)


def _images(dataset: FileDataset, split: str) -> set[Path]:
    return {dataset.paths(split, name)[0] for name in dataset.names(split)}
