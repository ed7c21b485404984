"""What a plan says is to be trained is what a run trains, whatever is stored, damaged, asked for or answered."""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data import datasets
from pixelpick_ray.estimate import summarise
from pixelpick_ray.plan import claim_name, make_plan, progress_of
from pixelpick_ray.runner import session
from pixelpick_ray.status import status_of
from pixelpick_ray.store.records import ChainRecord, read_chain
from tests.support.person import Person
from tests.support.tiny_data import Place, TinyDataset, place_at, tiny_experiment

pytestmark = pytest.mark.training

STRATEGIES = "grid=[{{acquire.strategy: [{}], budget: [{}]}}]"
BASE = STRATEGIES.format("margin, entropy", "3, 6")  # two chains, three fits: the first is shared
EVERY = "evaluate.when=every_epoch"
MORE = "evaluate.splits={val: {}, train: {}}"
PEOPLE = ("oracle={name: human}", STRATEGIES.format("margin, entropy", "6"))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)


@dataclass
class Lab:
    """A place where experiments are planned and run."""

    place: Place

    def plan(self, *changes: str, keep: str = "needed") -> tuple[int, int]:
        """How many trainings a plan says that a run makes now, and how many after people have answered."""
        figures = self._figures(tiny_experiment("train.epochs=1", *changes), replace(self.place, keep_weights=keep))
        return figures["fits_to_train"] - figures["fits_after_answers"], figures["fits_after_answers"]

    def _figures(self, experiment: Experiment, place: Place) -> dict[str, int]:
        plan = make_plan(experiment)
        progress = progress_of(plan, place)
        figures = summarise(plan, progress, place)
        told = status_of(plan, place).line
        assert re.match(rf"{figures['stored_fits']} of \d+ stages? stored, {figures['fits_to_train']} to train", told)
        return figures

    def run(self, *changes: str, keep: str = "needed") -> int:
        """How many trainings a run makes, as it says itself."""
        plan, console = make_plan(tiny_experiment("train.epochs=1", *changes)), Console(file=io.StringIO(), width=200)
        execution = replace(self.place, keep_weights=keep)
        claim_name(plan, execution.results)
        stop = session.StopRequest(None)
        status = session.run(plan, execution, console, stop, local=True, annotate="annotate it").status
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert status == (session.STOPPED if "annotate it" in text else session.OK), text
        (number,) = re.findall(r"trained now: (\d+)", text)
        return int(number)

    def records(self, *changes: str) -> list[ChainRecord]:
        """The records of the chains."""
        experiment = tiny_experiment("train.epochs=1", *changes)
        found = [read_chain(self.place.results, experiment, chain.id) for chain in make_plan(experiment).chains]
        return [record for record in found if record is not None]

    def damage(self, kind: str, key: str | None, file: str) -> None:
        """Flip a bit of a file of a result."""
        path = self.place.results.folder(kind, str(key)) / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    def weights(self) -> list[str]:
        """Keys of the fits whose weights are stored."""
        found = self.place.results.path.glob("fit/*/weights.safetensors")
        return sorted(path.parent.name for path in found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the base experiment."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "tiny", TinyDataset)
        torch.set_num_threads(1)
        assert Lab(place_at(folder / "store", folder, folder / "cache")).run(BASE) == 3
    return folder


@pytest.fixture
def lab(finished: Path, tmp_path: Path) -> Lab:
    """The base experiment is stored, without weights."""
    shutil.copytree(finished, tmp_path / "lab")
    return Lab(place_at(tmp_path / "lab" / "store", finished, finished / "cache"))


@pytest.fixture
def empty(tmp_path: Path) -> Lab:
    return Lab(place_at(tmp_path / "store", tmp_path, tmp_path / "cache"))


def damage_pick(lab: Lab) -> None:
    lab.damage("pick", lab.records(BASE)[0].stages[0].pick, "pixels.npz")


def damage_first_pixels(lab: Lab) -> None:
    lab.damage("pick", lab.records(BASE)[0].initial, "pixels.npz")


def damage_fit(lab: Lab) -> None:
    lab.damage("fit", lab.records(BASE)[1].stages[1].fit, "training.json")


def damage_evaluation(lab: Lab) -> None:
    lab.damage("evaluation", lab.records(BASE)[0].stages[1].evaluations["val"], "confusion.npz")


def damage_record(lab: Lab) -> None:
    path = next(lab.place.results.path.glob("experiments/*/chains/*.json"))
    path.write_bytes(path.read_bytes().replace(b'"budget": 6', b'"budget": 7'))


def lose_records(lab: Lab) -> None:
    shutil.rmtree(lab.place.results.path / "experiments")


def lose_everything(lab: Lab) -> None:
    shutil.rmtree(lab.place.store)


def nothing(lab: Lab) -> None:
    """As it is."""


SCENARIOS: dict[str, tuple[Callable[[Lab], None], tuple[str, ...], str, int]] = {
    "fresh": (lose_everything, (BASE,), "needed", 3),
    "all is stored": (nothing, (BASE,), "needed", 0),
    "budgets added": (nothing, (STRATEGIES.format("margin, entropy", "3, 6, 9"),), "needed", 2 + 2),
    "random added": (nothing, (STRATEGIES.format("margin, entropy, random", "3, 6"),), "needed", 1),
    "seeds added": (nothing, (BASE.replace("{acquire", "{seed: [0, 1], acquire"),), "needed", 3),
    "a strategy added": (nothing, (STRATEGIES.format("margin, entropy, least_confidence", "3, 6"),), "needed", 1 + 1),
    "full supervision added": (nothing, (BASE.replace("}]", "}, {budget: [full]}]"),), "needed", 1),
    "fewer asked for": (nothing, (STRATEGIES.format("entropy", "3"),), "needed", 0),
    "a split added": (nothing, (BASE, MORE, "name=other"), "needed", 3),
    "measured at every epoch": (nothing, (BASE, EVERY, "name=other"), "needed", 3),
    "weights of the last stages asked for": (nothing, (BASE,), "last", 2),
    "all weights asked for": (nothing, (BASE,), "all", 3),
    "a split and weights": (nothing, (BASE, MORE, "name=other"), "all", 3),
    "a pick is damaged": (damage_pick, (BASE,), "needed", 1),
    "the first pixels are damaged": (damage_first_pixels, (BASE,), "needed", 0),
    "a fit is damaged": (damage_fit, (BASE,), "needed", 1),
    "an evaluation is damaged": (damage_evaluation, (BASE,), "needed", 1),
    "a record is damaged": (damage_record, (BASE,), "needed", 0),
    "the records are lost": (lose_records, (BASE,), "needed", 0),
    "another name": (nothing, (BASE, "name=other"), "needed", 0),
    "another experiment shares the first fit": (
        nothing,
        (STRATEGIES.format("random", "3, 6"), "name=other"),
        "needed",
        1,
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_predicts_the_trainings_of_a_run(lab: Lab, name: str) -> None:
    prepare, changes, keep, expected = SCENARIOS[name]
    prepare(lab)
    assert lab.plan(*changes, keep=keep) == (expected, 0)
    assert lab.run(*changes, keep=keep) == expected
    assert lab.plan(*changes, keep=keep) == (0, 0)
    assert lab.run(*changes, keep=keep) == 0


def test_with_weights_a_split_and_a_strategy_need_no_training_again(empty: Lab) -> None:
    assert empty.plan(BASE, keep="all") == (3, 0)
    assert empty.run(BASE, keep="all") == 3
    added = STRATEGIES.format("margin, entropy, least_confidence", "3, 6")
    for changes, expected in [((BASE, MORE, "name=other"), 0), ((added, MORE, "name=other"), 1)]:
        assert empty.plan(*changes, keep="all") == (expected, 0)
        assert empty.run(*changes, keep="all") == expected
    assert len(empty.weights()) == 4
    for path in empty.place.results.path.glob("fit/*/weights.safetensors"):
        path.unlink()
    assert empty.plan(added, MORE, "name=other") == (0, 0)
    assert empty.plan(added, MORE, "name=other", keep="last") == (3, 0)
    assert empty.run(added, MORE, "name=other", keep="last") == 3


def test_people_are_part_of_the_plan(empty: Lab) -> None:
    person = Person(empty.place.results, tiny_experiment("train.epochs=1", *PEOPLE))
    assert empty.plan(*PEOPLE) == (0, 3)
    assert empty.run(*PEOPLE) == 0
    person.answer_all(limit=4)
    assert empty.plan(*PEOPLE) == (0, 3)
    assert empty.run(*PEOPLE) == 0
    person.answer_all()
    assert empty.plan(*PEOPLE) == (1, 2)  # the first fit, which both chains share
    assert empty.run(*PEOPLE) == 1
    person.answer_all()
    assert empty.plan(*PEOPLE) == (2, 0)
    assert empty.run(*PEOPLE) == 2
    assert empty.plan(*PEOPLE) == (0, 0)
    lasts = sorted({record.stages[-1].fit for record in empty.records(*PEOPLE)})
    assert empty.weights() == lasts  # what people paid for is kept


# Weights


def test_weights_that_were_asked_for_stay_whatever_is_run_later(empty: Lab) -> None:
    empty.run(BASE, keep="all")
    kept = empty.weights()
    assert len(kept) == 3
    empty.run(BASE)
    assert empty.weights() == kept
    empty.run(BASE, "name=other")
    assert empty.weights() == kept
    larger = STRATEGIES.format("margin, entropy", "3, 6, 9")
    assert empty.plan(larger) == (2, 0)
    assert empty.run(larger) == 2
    assert empty.weights() == kept  # and none that this run needed only for itself


def test_a_run_leaves_no_weights_that_nobody_asked_for(empty: Lab) -> None:
    empty.run(BASE)
    assert empty.weights() == []
    assert not list(empty.place.results.path.glob("fit/*/weights.run"))


def test_the_last_weights_can_be_had_of_a_finished_experiment(lab: Lab) -> None:
    assert lab.weights() == []
    assert lab.run(BASE, keep="last") == 2
    assert lab.weights() == sorted(record.stages[-1].fit for record in lab.records(BASE))
    assert lab.run(BASE) == 0
    assert len(lab.weights()) == 2
