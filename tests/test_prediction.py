"""What a plan says is to be trained is what a run trains, whatever is stored, damaged, asked for or answered."""

import io
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from pixelpick_ray.estimate import summarise
from pixelpick_ray.planning import claim_name, make_plan, progress_of
from pixelpick_ray.runner import session
from pixelpick_ray.status import status_of
from pixelpick_ray.store import experiment_folder
from pixelpick_ray.store.records import ChainRecord, read_chain
from pixelpick_ray.supervisor import OK, STOPPED
from tests.support.person import Person
from tests.support.tiny_data import Place, place_at, tiny_experiment

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("tiny")]

STRATEGIES = "grid=[{{acquire.strategy: [{}], budget: [{}]}}]"
BASE = STRATEGIES.format("margin, entropy", "3, 6")  # two chains, three fits: the first is shared
EVERY = "evaluate.when=every_epoch"
MORE = "evaluate.splits={val: {}, train: {}}"
PEOPLE = ("oracle={name: human}", STRATEGIES.format("margin, entropy", "6"))


@dataclass
class Lab:
    """A place where experiments are planned and run."""

    place: Place

    def plan(self, *changes: str, keep: str = "needed") -> tuple[int, int]:
        """How many trainings a plan says that a run makes now, and how many after people have answered."""
        plan, place = make_plan(tiny_experiment("train.epochs=1", *changes)), replace(self.place, keep_weights=keep)
        figures = summarise(plan, progress_of(plan, place), place)
        told = rf"{figures['stored_fits']} of \d+ stages? stored, {figures['fits_to_train']} to train"
        assert re.match(told, status_of(plan, place).line)
        return figures["fits_to_train"] - figures["fits_after_answers"], figures["fits_after_answers"]

    def run(self, *changes: str, keep: str = "needed") -> int:
        """How many trainings a run makes, as it says itself."""
        plan, text = make_plan(tiny_experiment("train.epochs=1", *changes)), io.StringIO()
        execution, console = replace(self.place, keep_weights=keep), Console(file=text, width=200)
        claim_name(plan, execution.results)
        stop = session.StopRequest(None)
        status = session.run(plan, execution, console, stop, local=True, annotate="annotate it").status
        assert status == (STOPPED if "annotate it" in text.getvalue() else OK), text.getvalue()
        (number,) = re.findall(r"trained now: (\d+)", text.getvalue())
        return int(number)

    def planned_and_run(self, *changes: str, keep: str = "needed") -> int:
        """How many trainings a run makes, which a plan has said."""
        planned = self.plan(*changes, keep=keep)
        assert planned == (self.run(*changes, keep=keep), 0)
        return planned[0]

    def records(self, *changes: str) -> list[ChainRecord]:
        experiment = tiny_experiment("train.epochs=1", *changes)
        found = [read_chain(self.place.results, experiment, chain.id) for chain in make_plan(experiment).chains]
        return [record for record in found if record is not None]

    def weights(self) -> list[str]:
        """Keys of the fits whose weights are stored."""
        return sorted(path.parent.name for path in self.place.results.path.glob("fit/*/weights.safetensors"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """A store with the base experiment."""
    folder = tmp_path_factory.mktemp("finished")
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


def spoil(lab: Lab, what: str) -> None:
    """Damage something that is stored of the base experiment, or lose all of it."""
    first, _ = lab.records(BASE)
    if what in ("pick", "first pixels"):
        key = first.stages[0].pick if what == "pick" else first.initial
        path = lab.place.results.folder("pick", str(key)) / "pixels.npz"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    if what == "all":
        shutil.rmtree(lab.place.results.path)


ADDED = STRATEGIES.format("margin, entropy, least_confidence", "3, 6")
OTHER = "name=other"
# What was done to the stored base experiment, what is asked for then, with which weights, and the trainings.
SCENARIOS: dict[str, tuple[str, tuple[str, ...], str, int]] = {
    "fresh": ("all", (BASE,), "needed", 3),
    "budgets added": ("nothing", (STRATEGIES.format("margin, entropy", "3, 6, 9"),), "needed", 2 + 2),
    "a strategy added": ("nothing", (ADDED,), "needed", 1 + 1),
    "full supervision added": ("nothing", (BASE.replace("}]", "}, {budget: [full]}]"),), "needed", 1),
    "fewer asked for": ("nothing", (STRATEGIES.format("entropy", "3"),), "needed", 0),
    "a split added": ("nothing", (BASE, MORE, OTHER), "needed", 3),
    "measured at every epoch": ("nothing", (BASE, EVERY, OTHER), "needed", 3),
    "weights of the last stages asked for": ("nothing", (BASE,), "last", 2),
    "all weights asked for": ("nothing", (BASE,), "all", 3),
    "a split and weights": ("nothing", (BASE, MORE, OTHER), "all", 3),
    "a pick is damaged": ("pick", (BASE,), "needed", 1),
    "the first pixels are damaged": ("first pixels", (BASE,), "needed", 0),
    "another name": ("nothing", (BASE, OTHER), "needed", 0),
    "another experiment shares the first fit": ("nothing", (STRATEGIES.format("random", "3, 6"), OTHER), "needed", 1),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_predicts_the_trainings_of_a_run(lab: Lab, name: str) -> None:
    spoilt, changes, keep, expected = SCENARIOS[name]
    spoil(lab, spoilt)
    assert lab.planned_and_run(*changes, keep=keep) == expected
    assert lab.planned_and_run(*changes, keep=keep) == 0
    if keep == "last":
        assert lab.weights() == sorted(record.stages[-1].fit for record in lab.records(BASE))
        assert lab.run(BASE) == 0
        assert len(lab.weights()) == 2
    elif keep == "needed":
        assert lab.weights() == []  # none that nobody asked for
        assert not list(lab.place.results.path.glob("fit/*/weights.run"))


def test_a_run_makes_damaged_and_lost_records_again(lab: Lab) -> None:
    folder = lab.place.results.path / experiment_folder(tiny_experiment("train.epochs=1", BASE))
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    assert len(before) == 3
    for path, content in before.items():
        path.write_bytes(content.replace(b"margin", b"marlin").replace(b"entropy", b"entropi"))
    assert lab.planned_and_run(BASE) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    assert len(lab.place.results.damaged()) == 3
    shutil.rmtree(folder)
    assert lab.planned_and_run(BASE) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_weights_that_were_asked_for_stay_and_save_trainings(empty: Lab) -> None:
    assert empty.planned_and_run(BASE, keep="all") == 3
    kept = empty.weights()
    assert len(kept) == 3
    assert empty.planned_and_run(STRATEGIES.format("margin, entropy", "3, 6, 9")) == 2
    assert empty.weights() == kept  # whatever is run later, and none that this run needed only for itself
    # Another split is measured with them; what earlier epochs measure needs the trainings again.
    for changes, expected in [((BASE, MORE, OTHER), 0), ((ADDED, MORE, OTHER), 1), ((BASE, EVERY, "name=every"), 3)]:
        assert empty.planned_and_run(*changes, keep="all") == expected
    assert len(empty.weights()) == 4
    for path in empty.place.results.path.glob("fit/*/weights.safetensors"):
        path.unlink()
    assert empty.plan(ADDED, MORE, OTHER) == (0, 0)
    assert empty.planned_and_run(ADDED, MORE, OTHER, keep="last") == 3


def test_people_are_part_of_the_plan(empty: Lab) -> None:
    person = Person(empty.place.results, tiny_experiment("train.epochs=1", *PEOPLE))
    # how many answers there are, what can be trained now and after further answers; both chains share the first fit
    for limit, now, after in ((0, 0, 3), (4, 0, 3), (None, 1, 2), (None, 2, 0)):
        if limit != 0:
            person.answer_all(limit=limit)
        assert empty.plan(*PEOPLE) == (now, after)
        assert empty.run(*PEOPLE) == now
    assert empty.plan(*PEOPLE) == (0, 0)
    lasts = sorted({record.stages[-1].fit for record in empty.records(*PEOPLE)})
    assert empty.weights() == lasts  # what people paid for is kept
