"""Chains that ask people: where they stop, what they go on with, and what becomes of pixels without a class."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment
from pixelpick_ray.data import datasets
from pixelpick_ray.data.answers import Book, Waiting
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import UInt8Array
from pixelpick_ray.data.labels import UNKNOWN, LabelledPixels
from pixelpick_ray.data.questions import all_questions, open_ask
from pixelpick_ray.errors import StoreError
from pixelpick_ray.events import AnswersAwaited, ChainDone, EpochDone, Event, FitTrained, StageDone
from pixelpick_ray.planning import Plan, make_plan
from pixelpick_ray.report.rows import load_results
from pixelpick_ray.report.tables import terminal_table
from pixelpick_ray.runner import local
from pixelpick_ray.runner.people import People
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store
from tests.support.person import Person, nobody
from tests.support.tiny_data import TinyDataset, tiny_experiment

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("tiny")]

HUMAN = "oracle={name: human}"
REPLACED = "oracle={name: human, replace: true}"
TWO_CHAINS = "grid=[{acquire.strategy: [margin, random], seed: [0], budget: %s}]"


@pytest.fixture
def execution(tmp_path: Path, cache_path: Path) -> Execution:
    return Execution(tmp_path / "data", str(tmp_path / "store"), cache_path, tmp_path / "runs")


def short(*changes: str) -> Experiment:
    """Of trainings of one epoch."""
    return tiny_experiment("train.epochs=1", *changes)


def of_one_chain(budgets: str, *changes: str) -> Experiment:
    """One chain that asks people, unless changes say otherwise."""
    return short(f"grid=[{{budget: {budgets}}}]", *(changes or [HUMAN]))


def walk(
    plan: Plan,
    execution: Execution,
    *,
    people: People | None = None,
    hear: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Run every chain as far as it goes; the errors."""
    people = people or nobody(plan, execution)
    return list(local.run(plan, list(plan.chains), execution, hear, stop, people).values())


def run(experiment: Experiment, execution: Execution) -> list[Event]:
    """Run every chain as far as it goes, without errors; the events."""
    events = list[Event]()
    assert walk(make_plan(experiment), execution, hear=events.append) == []
    return events


def person_of(experiment: Experiment, execution: Execution, **refusing: Any) -> Person:
    return Person(Store(execution.store), experiment, **refusing)


def run_with(person: Person, execution: Execution) -> int:
    """Run and answer in turn until all is done; how often people were waited for."""
    rounds = 0
    while any(isinstance(event, AnswersAwaited) for event in run(person.experiment, execution)):
        assert person.answer_all() > 0
        rounds += 1
    return rounds


def pending(experiment: Experiment, execution: Execution) -> tuple[int, int]:
    """How many answers the first chain of an experiment waits for, of how many."""
    chain = make_plan(experiment).chains[0]
    found = Waiting(Store(execution.store), experiment).look([chain.id])[chain.id]
    return found.missing, found.asked


def picks(execution: Execution) -> list[LabelledPixels]:
    """Every stored pick."""
    return [LabelledPixels.read(path) for path in sorted(Path(execution.store).glob("pick/*/pixels.npz"))]


def test_a_person_who_knows_the_truth_is_as_good_as_the_ground_truth(execution: Execution) -> None:
    """Byte for byte: the pixels, their statistics, the trainings, and the table."""
    found = []
    for oracle, where in ((HUMAN, "people"), ("oracle={name: ground_truth}", "truth")):
        spec, place = short(TWO_CHAINS % "[3, 6, 9]", oracle), replace(execution, store=f"{execution.store}-{where}")
        if where == "people":
            assert run_with(person_of(spec, place), place) == 3
        run(spec, place)
        files = ("pixels.npz", "statistics.json")
        stored = [{path.read_bytes() for path in Path(place.store).glob(f"pick/*/{name}")} for name in files]
        assert [len(contents) for contents in stored] == [1 + 2 * 2] * 2
        fits = {path.name for path in Path(place.store).glob("fit/*")}
        found.append((stored, fits, terminal_table(load_results(Store(place.store), [spec]))))
    assert found[0] == found[1]
    assert ("margin" in found[0][2], "missing" in found[0][2]) == (True, False)


def test_what_is_asked_is_stored_and_told(execution: Execution) -> None:
    experiment, store = short(TWO_CHAINS % "[3, 6, 9]", HUMAN), Store(execution.store)
    plan = make_plan(experiment)
    events = run(experiment, execution)
    assert [(event.missing, event.asked) for event in events if isinstance(event, AnswersAwaited)] == [(15, 15)] * 2
    assert store.leased() == {}
    person = person_of(experiment, execution)
    ((_, questions),) = person.asked()  # both strategies ask for the same first pixels
    assert (questions.predicted == -1).all()
    assert np.isnan(questions.entropy).all()
    assert person.answer_all(limit=4) == 4
    state = status_of(plan, execution)
    assert state.asks_people
    assert {(chain.waits_for, chain.stages) for chain in state.chains} == {("11 of 15 answers", ("waiting",) * 3)}
    (path,) = Path(execution.store).glob("question/*/questions.npz")
    before = path.read_bytes()
    path.write_bytes(before[:-9])  # damaged questions are asked anew
    assert [(event.missing, event.asked) for event in run(experiment, execution)] == [(11, 15)] * 2
    assert path.read_bytes() == before
    assert person.answer_all() == 11
    assert pending(experiment, execution) == (0, 15)
    kinds = [type(event) for event in run(experiment, execution) if event.chain == plan.chains[0].id]
    assert kinds == [EpochDone, FitTrained, StageDone, AnswersAwaited]
    ask = open_ask(store, experiment, plan.chains[0].id)
    assert ask is not None
    asked = all_questions(ask, store)
    assert (ask.budget, asked.shapes.tolist()) == (6, [[32, 48]] * 5)
    assert np.isfinite(asked.entropy).all()
    assert set(asked.predicted.tolist()) <= set(range(4))


def test_a_pixel_that_nobody_can_tell_is_neither_trained_on_nor_asked_again(execution: Execution) -> None:
    person = person_of(of_one_chain("[3, 6]"), execution, refuse_every=4)
    run_with(person, execution)
    assert len(person.said) == len({answer.place for answer in person.said}) == 2 * 3 * 5
    refused = [answer.place for answer in person.said if answer.kind == "unknown"]
    assert refused
    assert sum(int((pixels.label == UNKNOWN).sum()) for pixels in picks(execution)) == len(refused)
    trained = [json.loads(path.read_text()) for path in Path(execution.store).glob("fit/*/training.json")]
    assert max(one["labelled_pixels"] for one in trained) == 30 - len(refused)


def test_a_pixel_without_a_class_is_replaced_where_the_experiment_says_so(execution: Execution) -> None:
    person = person_of(of_one_chain("[3, 6]", REPLACED), execution, refuse_every=3)
    assert run_with(person, execution) > 2
    for pixels in picks(execution):
        assert np.bincount(pixels.with_class().image).tolist() == [3] * 5
        assert len(pixels) > 15
    assert len(person.said) == len({answer.place for answer in person.said})
    place = replace(execution, store=f"{execution.store}-five")  # of an image without a class, five times
    person = person_of(of_one_chain("[3]", REPLACED), place, refuse_every=1, but_in="img_00")
    run_with(person, place)
    (pixels,) = picks(place)
    assert np.bincount(pixels.image).tolist() == [3] + [3 + 5 * 3] * 4
    assert len(person.said) == len(pixels)


def test_images_that_nobody_can_tell_anything_of_come_to_an_end(execution: Execution) -> None:
    """Replacing stops where an image has no pixel left that was not asked for; the next stage asks elsewhere."""
    experiment = of_one_chain("[60, 63]", "dataset.size=[8, 12]", "acquire.initial_pixels=60", REPLACED)
    person = person_of(experiment, execution, refuse_every=1, but_in="img_00")
    run_with(person, execution)
    second, first = sorted(picks(execution), key=len)
    spec = experiment.dataset
    prepared = prepare(TinyDataset(spec, execution.data_path), "train", spec, execution.cache_path)
    others = int(prepared.candidates[1:].sum())
    assert len(first) == 60 + others
    assert second.names == ("img_00",)
    assert len(first) + len(second) == len(person.said) == 63 + others
    assert (first.label == UNKNOWN).sum() == others


class More(TinyDataset):
    """Two further training images."""

    sizes: ClassVar[dict[str, int]] = {"train": 7, "val": 3}


class Changed(TinyDataset):
    """The third image has another content."""

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        image, label = super().read(split, name)
        return (255 - image if name == self.splits[split].names[2] else image), label


def test_an_answer_holds_for_every_chain_that_asks_for_it(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another strategy and another network ask for the first pixels of the seed again: nobody is bothered. Answers
    outlive a data set that grows; they are not taken for those of another picture of the same name.
    """
    experiment = of_one_chain("[3]")
    run_with(person_of(experiment, execution), execution)
    other = of_one_chain("[4]", "name=other", "train.batch_size=4", "acquire.initial_pixels=4", HUMAN)
    run(other, execution)
    missing, asked = pending(other, execution)
    assert missing < asked == 20
    apart = of_one_chain("[3]", "name=apart", "oracle={name: human, suggestions: true}")
    run(apart, execution)
    assert pending(apart, execution)[0] == 15  # those answers were given without suggestions
    for kind in (More, Changed):
        monkeypatch.setitem(datasets.DATASETS, "tiny", kind)
        monkeypatch.setattr(kind, "signature", lambda self, split: [[type(self).__name__, split, self.sizes[split]]])
        if kind is More:
            run(experiment, execution)
            assert pending(experiment, execution)[0] == 2 * 3
    (told,) = walk(make_plan(experiment), execution)
    assert "image img_02: differs from the image that people labelled under this name; rename it" in told


def test_what_is_asked_stays_asked_while_a_chain_runs_again(execution: Execution) -> None:
    """The page may answer at any moment: also while the stages before are walked through, and after a kill there."""
    experiment = of_one_chain("[3, 6]")
    person = person_of(experiment, execution)
    run(experiment, execution)
    person.answer_all()
    run(experiment, execution)
    ((_, before),) = person.asked()
    (path,) = Path(execution.store).glob("experiments/*/chains/*.json")
    record = json.loads(path.read_text())
    assert len(record["questions"]) == 2
    seen: list[Any] = []
    assert walk(make_plan(experiment), execution, stop=lambda: bool(seen.append(person.asked()))) == []  # type: ignore[func-returns-value]
    assert len(seen) > 2
    assert all(len(asked) == 1 and asked[0][1].places() == before.places() for asked in seen)
    run(of_one_chain("[3]"), execution)
    assert json.loads(path.read_text()) == record


@pytest.mark.parametrize("waits", [True, False])
def test_a_chain_whose_people_take_longer_is_waited_for(execution: Execution, waits: bool) -> None:
    """One chain's questions are answered first; the other's only when that one has gone on."""
    experiment = short(TWO_CHAINS % "[3, 6]", HUMAN)
    plan, done = make_plan(experiment), set[str]()
    person = person_of(experiment, execution)
    run(experiment, execution)
    person.answer_all()

    def hear(event: Event) -> None:
        if isinstance(event, ChainDone):
            done.add(event.chain)
            person.answer_all()

    def tell(text: str) -> None:
        """The first of the two chains is answered when it is said that people are waited for."""
        assert "answers: the page" in text
        person.answer_all(limit=15)

    people = People(plan, replace(execution, wait=waits), "the page", tell, lambda: False)
    assert walk(plan, execution, people=people, hear=hear) == []
    assert done == ({chain.id for chain in plan.chains} if waits else set())


def test_nothing_to_replace_needs_no_network(execution: Execution) -> None:
    experiment = of_one_chain("[3, 6]", REPLACED)
    person = person_of(experiment, execution)
    for _ in range(2):
        run(experiment, execution)
        person.answer_all()
    for path in Path(execution.store).glob("fit/*/weights.safetensors"):
        path.unlink()
    events = run(experiment, execution)
    assert [event.stage for event in events if isinstance(event, EpochDone)] == [1]
    assert isinstance(events[-1], ChainDone)


def test_answers_that_are_all_refusals_train_nothing(execution: Execution) -> None:
    experiment = of_one_chain("[3]")
    run(experiment, execution)
    person_of(experiment, execution, refuse_every=1).answer_all()
    assert walk(make_plan(experiment), execution) == [
        "stage 0: people gave no pixel a class, so there is nothing to train on; set oracle.replace: true to ask "
        "about other pixels"
    ]


def test_a_line_that_is_no_answer_is_told(tmp_path: Path) -> None:
    said = {"image": "a", "y": -1, "x": 0, "kind": "class", "label": "a", "annotator": "ann", "id": "1", "time": 1.0}
    Store(tmp_path).append_lines("answers/k/mine.jsonl", [said])
    with pytest.raises(StoreError, match=r"jsonl: invalid line \(y: .* correct or remove it"):
        Book(Store(tmp_path), "k")


def test_how_people_are_asked_makes_no_other_experiment() -> None:
    one, other = (tiny_experiment(HUMAN, *changes) for changes in ((), ("annotate={repeats: 0.1, keys: {a: z}}",)))
    assert one.identity() == other.identity()
