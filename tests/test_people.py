"""Chains that ask people: where they stop, what they go on with, and what becomes of pixels without a class."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.experiment import Experiment, parse_experiment
from pixelpick_ray.data import datasets
from pixelpick_ray.data.answers import Answer, Book, Pending, Undo, Waiting
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.datasets import UInt8Array
from pixelpick_ray.data.labels import UNKNOWN, LabelledPixels
from pixelpick_ray.data.questions import all_questions, open_ask
from pixelpick_ray.errors import DataError, SpecError, StoreError
from pixelpick_ray.events import AnswersAwaited, ChainDone, EpochDone, Event, FitTrained, StageDone
from pixelpick_ray.plan import make_plan
from pixelpick_ray.report.rows import load_results
from pixelpick_ray.report.tables import terminal_table
from pixelpick_ray.runner import local
from pixelpick_ray.runner.people import People
from pixelpick_ray.status import status_of
from pixelpick_ray.store import Store
from tests.support.person import Person, nobody
from tests.support.stores import check_plan
from tests.support.tiny_data import TINY_EXPERIMENT, TinyDataset, tiny_experiment

pytestmark = pytest.mark.training

GRID = "grid=[{acquire.strategy: [margin, random], seed: [0], budget: [3, 6, 9]}]"
HUMAN = "oracle={name: human}"


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)


@pytest.fixture
def execution(tmp_path: Path, cache_path: Path) -> Execution:
    return Execution(tmp_path / "data", str(tmp_path / "store"), cache_path, tmp_path / "runs")


def run(experiment: Experiment, execution: Execution) -> list[Event]:
    """Run every chain as far as it goes, and return the events."""
    plan, events = make_plan(experiment), list[Event]()
    people = nobody(plan, execution)
    assert local.run(plan, list(plan.chains), execution, events.append, lambda: False, people) == {}
    return events


def run_with(person: Person, experiment: Experiment, execution: Execution) -> int:
    """Run and answer in turn until all is done; how often people were waited for."""
    rounds = 0
    while any(isinstance(event, AnswersAwaited) for event in run(experiment, execution)):
        assert person.answer_all() > 0
        rounds += 1
    return rounds


def pending(experiment: Experiment, execution: Execution) -> Pending:
    """What the only chain of an experiment waits for."""
    (chain,) = make_plan(experiment).chains
    return Waiting(Store(execution.store), experiment).look([chain.id])[chain.id]


def picks(execution: Execution) -> list[LabelledPixels]:
    """Every stored pick."""
    return [LabelledPixels.read(path) for path in sorted(Path(execution.store).glob("pick/*/pixels.npz"))]


def contents(execution: Execution, name: str) -> set[bytes]:
    return {path.read_bytes() for path in Path(execution.store).glob(f"pick/*/{name}")}


def test_a_person_who_knows_the_truth_is_as_good_as_the_ground_truth(execution: Execution) -> None:
    """Byte for byte: the pixels, their statistics, the trainings, and the table."""
    truth, human = tiny_experiment(GRID), tiny_experiment(GRID, HUMAN)
    others = replace(execution, store=execution.store + "-of-people")
    run(truth, execution)
    person = Person(Store(others.store), human)
    assert run_with(person, human, others) == 3
    for name in ("pixels.npz", "statistics.json"):
        assert contents(others, name) == contents(execution, name)
        assert len(contents(others, name)) == 1 + 2 * 2
    fits = [{path.name for path in Path(place.store).glob("fit/*")} for place in (execution, others)]
    assert fits[0] == fits[1]
    tables = [
        terminal_table(load_results(Store(place.store), [spec]))
        for place, spec in ((execution, truth), (others, human))
    ]
    assert tables[0] == tables[1]
    assert "margin" in tables[0]
    assert "missing" not in tables[0]


def test_what_is_asked_is_stored_and_told(execution: Execution) -> None:
    experiment, store = tiny_experiment(GRID, HUMAN), Store(execution.store)
    plan = make_plan(experiment)
    events = run(experiment, execution)
    assert [(event.missing, event.asked) for event in events if isinstance(event, AnswersAwaited)] == [(15, 15)] * 2
    assert store.leased() == {}
    person = Person(store, experiment)
    ((_, questions),) = person.asked()  # both strategies ask for the same first pixels
    assert (questions.predicted == -1).all()
    assert np.isnan(questions.entropy).all()
    assert person.answer_all(limit=4) == 4
    state = status_of(plan, execution)
    assert state.asks_people
    assert {chain.waits_for for chain in state.chains} == {"11 of 15 answers"}
    assert {chain.stages for chain in state.chains} == {("waiting",) * 3}
    assert [type(event) for event in run(experiment, execution)] == [AnswersAwaited] * 2
    assert person.answer_all() == 11
    looked = Waiting(store, experiment).look([plan.chains[0].id])[plan.chains[0].id]
    assert (looked.missing, looked.asked) == (0, 15)
    kinds = [type(event) for event in run(experiment, execution) if event.chain == plan.chains[0].id]
    assert kinds == [*[EpochDone] * 3, FitTrained, StageDone, AnswersAwaited]
    ask = open_ask(store, experiment, plan.chains[0].id)
    assert ask is not None
    assert ask.budget == 6
    asked = all_questions(ask, store)
    assert np.isfinite(asked.entropy).all()
    assert set(asked.predicted.tolist()) <= set(range(4))
    assert asked.shapes.tolist() == [[32, 48]] * 5


def test_a_pixel_that_nobody_can_tell_is_neither_trained_on_nor_asked_again(execution: Execution) -> None:
    experiment = tiny_experiment("grid=[{budget: [3, 6, 9]}]", HUMAN)
    person = Person(Store(execution.store), experiment, refuse_every=4)
    run_with(person, experiment, execution)
    places = [answer.place for answer in person.said]
    assert len(places) == len(set(places)) == 3 * 3 * 5
    refused = [answer.place for answer in person.said if answer.kind == "unknown"]
    assert refused
    stored = picks(execution)
    assert sum(int((pixels.label == UNKNOWN).sum()) for pixels in stored) == len(refused)
    trained = {
        path.read_text(encoding="utf-8").rpartition('"labelled_pixels": ')[2].strip("}\n")
        for path in Path(execution.store).glob("fit/*/training.json")
    }
    assert max(map(int, trained)) == 45 - len(refused)


def test_a_pixel_without_a_class_is_replaced_where_the_experiment_says_so(execution: Execution) -> None:
    experiment = tiny_experiment("grid=[{budget: [3, 6]}]", "oracle={name: human, replace: true}")
    person = Person(Store(execution.store), experiment, refuse_every=3)
    assert run_with(person, experiment, execution) > 2
    for pixels in picks(execution):
        assert np.bincount(pixels.with_class().image).tolist() == [3] * 5
        assert len(pixels) > 15
    places = [answer.place for answer in person.said]
    assert len(places) == len(set(places))


def test_images_that_nobody_can_tell_anything_of_come_to_an_end(execution: Execution) -> None:
    """Replacing stops where an image has no pixel left that was not asked for; the next stage asks elsewhere."""
    changes = "dataset.size=[8, 12]", "acquire.initial_pixels=60", "grid=[{budget: [60, 63]}]", "train.epochs=1"
    experiment = tiny_experiment(*changes, "oracle={name: human, replace: true}")
    person = Person(Store(execution.store), experiment, refuse_every=1, but_in="img_00")
    run_with(person, experiment, execution)
    second, first = sorted(picks(execution), key=len)
    spec = experiment.dataset
    prepared = prepare(TinyDataset(spec, execution.data_path), "train", spec, execution.cache_path)
    others = int(prepared.candidates[1:].sum())
    assert len(first) == 60 + others
    assert second.names == ("img_00",)
    assert len(first) + len(second) == len(person.said) == 63 + others
    assert (first.label == UNKNOWN).sum() == others


def test_pixels_of_an_image_without_a_class_are_replaced_five_times(execution: Execution) -> None:
    experiment = tiny_experiment("grid=[{budget: [3]}]", "oracle={name: human, replace: true}")
    person = Person(Store(execution.store), experiment, refuse_every=1, but_in="img_00")
    run_with(person, experiment, execution)
    (pixels,) = picks(execution)
    assert np.bincount(pixels.image).tolist() == [3] + [3 + 5 * 3] * 4
    assert len(person.said) == len(pixels)


def test_an_answer_holds_for_every_chain_that_asks_for_the_pixel(execution: Execution) -> None:
    """Another strategy and another network ask for the first pixels of the seed again: nobody is bothered."""
    first = tiny_experiment("grid=[{budget: [3]}]", HUMAN)
    run_with(Person(Store(execution.store), first), first, execution)
    other = tiny_experiment("name=other", "train.epochs=1", "acquire.initial_pixels=4", "grid=[{budget: [4]}]", HUMAN)
    run(other, execution)
    found = pending(other, execution)
    assert found.asked == 20
    assert found.missing < 20
    apart = tiny_experiment("name=apart", "grid=[{budget: [3]}]", "oracle={name: human, suggestions: true}")
    run(apart, execution)
    assert pending(apart, execution).missing == 15  # those answers were given without suggestions


class More(TinyDataset):
    """Two further training images."""

    sizes: ClassVar[dict[str, int]] = {"train": 7, "val": 3}


class Changed(TinyDataset):
    """The third image has another content."""

    def read(self, split: str, name: str) -> tuple[UInt8Array, UInt8Array]:
        image, label = super().read(split, name)
        return (255 - image if name == self.splits[split].names[2] else image), label


def test_images_may_be_added_but_not_exchanged(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers outlive a data set that grows; they are not taken for those of another picture of the same name."""
    experiment = tiny_experiment("grid=[{budget: [3]}]", HUMAN)
    run_with(Person(Store(execution.store), experiment), experiment, execution)
    monkeypatch.setitem(datasets.DATASETS, "tiny", More)
    monkeypatch.setattr(More, "signature", lambda self, split: [["more", split, self.sizes[split]]])
    run(experiment, execution)
    assert pending(experiment, execution).missing == 2 * 3
    monkeypatch.setitem(datasets.DATASETS, "tiny", Changed)
    monkeypatch.setattr(Changed, "signature", lambda self, split: [["changed", split, self.sizes[split]]])
    plan = make_plan(experiment)
    errors = local.run(plan, list(plan.chains), execution, lambda event: None, lambda: False, nobody(plan, execution))
    (told,) = errors.values()
    assert told.startswith(
        "image img_02: is another one than when people labelled its pixels; give it a name of its own"
    )


def test_what_is_asked_stays_asked_while_a_chain_runs_again(execution: Execution) -> None:
    """The page may answer at any moment: also while the stages before are walked through, and after a kill there."""
    experiment, store = tiny_experiment("grid=[{budget: [3, 6]}]", HUMAN), Store(execution.store)
    person = Person(store, experiment)
    run(experiment, execution)
    person.answer_all()
    run(experiment, execution)
    ((_, before),) = person.asked()
    seen = []

    def stop() -> bool:
        seen.append(person.asked())
        return False

    plan = make_plan(experiment)
    people = nobody(plan, execution)
    assert local.run(plan, list(plan.chains), execution, lambda event: None, stop, people) == {}
    assert len(seen) > 2
    assert all(len(asked) == 1 and asked[0][1].places() == before.places() for asked in seen)


def test_a_run_of_fewer_budgets_forgets_nothing(execution: Execution) -> None:
    experiment, store = tiny_experiment("grid=[{budget: [3, 6]}]", HUMAN), Store(execution.store)
    person = Person(store, experiment)
    run(experiment, execution)
    person.answer_all()
    run(experiment, execution)
    (path,) = Path(execution.store).glob("experiments/*/chains/*.json")
    before = json.loads(path.read_text())
    assert len(before["questions"]) == 2
    run(tiny_experiment("grid=[{budget: [3]}]", HUMAN), execution)
    after = json.loads(path.read_text())
    assert after == before


@pytest.mark.parametrize("waits", [True, False])
def test_a_chain_whose_people_take_longer_is_waited_for(execution: Execution, waits: bool) -> None:
    """One chain's questions are answered first; the other's only when that one has gone on."""
    experiment, store = tiny_experiment(GRID.replace("[3, 6, 9]", "[3, 6]"), HUMAN), Store(execution.store)
    plan, kinds = make_plan(experiment), list[tuple[str, type]]()
    person = Person(store, experiment)
    run(experiment, execution)
    person.answer_all()

    def hear(event: Event) -> None:
        kinds.append((event.chain, type(event)))
        if isinstance(event, ChainDone) and waits:
            person.answer_all()

    def tell(text: str) -> None:
        """The first of the two chains is answered when it is said that people are waited for."""
        assert "answers: the page" in text
        person.answer_all(limit=15)

    people = People(plan, replace(execution, wait=waits), "the page", tell, lambda: False)
    assert local.run(plan, list(plan.chains), execution, hear, lambda: False, people) == {}
    done = {chain for chain, kind in kinds if kind is ChainDone}
    assert done == ({chain.id for chain in plan.chains} if waits else set())


def test_nothing_to_replace_needs_no_network(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment("grid=[{budget: [3, 6]}]", "oracle={name: human, replace: true}")
    person = Person(Store(execution.store), experiment)
    run(experiment, execution)
    person.answer_all()
    run(experiment, execution)
    person.answer_all()
    for path in Path(execution.store).glob("fit/*/weights.safetensors"):
        path.unlink()
    events = run(experiment, execution)
    assert [event.stage for event in events if isinstance(event, EpochDone)] == [1] * 3
    assert isinstance(events[-1], ChainDone)


@pytest.mark.parametrize("waits", [True, False])
def test_answers_that_are_all_refusals_train_nothing(execution: Execution, waits: bool) -> None:
    experiment = tiny_experiment("grid=[{budget: [3]}]", HUMAN)
    run(experiment, execution)
    person, plan = Person(Store(execution.store), experiment, refuse_every=1), make_plan(experiment)
    people = People(plan, replace(execution, wait=waits), "the page", lambda text: None, lambda: False)
    if not waits:
        person.answer_all()

    def hear(event: Event) -> None:
        if isinstance(event, AnswersAwaited):
            person.answer_all()

    errors = local.run(plan, list(plan.chains), execution, hear, lambda: False, people)
    assert list(errors.values()) == [
        "stage 0: people gave no pixel a class, there is nothing to train on; have other pixels asked for, with "
        "oracle.replace: true"
    ]


def test_questions_that_are_damaged_are_asked_anew(execution: Execution) -> None:
    experiment, store = tiny_experiment("grid=[{budget: [3]}]", HUMAN), Store(execution.store)
    run(experiment, execution)
    person = Person(store, experiment)
    person.answer_all(limit=5)
    (path,) = Path(execution.store).glob("question/*/questions.npz")
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    assert [(event.missing, event.asked) for event in run(experiment, execution)] == [(10, 15)]
    assert path.read_bytes() == before


def answer(number: int, **fields: object) -> Answer:
    values = {"id": str(number), "image": "a", "y": number, "x": 0, "kind": "class", "label": "a", "annotator": "ann"}
    return Answer(**(values | {"time": float(number)} | fields))


def test_a_book_keeps_what_was_said_last_and_what_was_not_taken_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = Book(store, "k"), Book(store, "k")
    one.append(answer(1))
    other.append(answer(2))
    other.append(answer(3, y=1, label="b"))
    one.append(answer(4, y=2, repeat=True, label="c"))
    one.append(answer(5, kind="void", label=None))
    one.append(Undo(undone="5", annotator="ann", time=6.0))
    one.refresh()
    assert {place: said.label for place, said in one.said().items()} == {("a", 1, 0): "b", ("a", 2, 0): "a"}
    assert [said.id for said in Book(store, "k").answers] == ["1", "2", "3", "4"]


def test_a_line_that_was_half_written_is_none_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    book = Book(Store(tmp_path), "k")
    book.append(answer(1))
    book.append(answer(2))
    (path,) = (tmp_path / "answers/k").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [said.id for said in Book(Store(tmp_path), "k").answers] == ["1"]
    path.write_bytes(whole.replace(b'"y":1', b'"y":-1'))
    with pytest.raises(StoreError, match=r"jsonl: a line is no answer \(y: .* correct or remove it"):
        Book(Store(tmp_path), "k")
    path.write_bytes(b"{" + whole)
    with pytest.raises(StoreError, match=r"jsonl: line 1 is damaged"):
        Book(Store(tmp_path), "k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("annotate: {keys: {a: x}}", "annotate: nobody is asked; add oracle: {name: human}, or leave it out"),
        (
            "annotate: {order: predicted}\noracle: {name: human}",
            "annotate.order: predicted shows what the network predicts; add oracle.suggestions: true, or take image",
        ),
    ],
)
def test_questions_that_make_no_sense_are_refused(change: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"^tiny.yaml: {message}"):
        parse_experiment(
            f"{TINY_EXPERIMENT}\n{change}\n", where="tiny.yaml", overrides=["grid=[{seed: [0], budget: [9]}]"]
        )


def test_how_people_are_asked_makes_no_other_experiment() -> None:
    one, other = (tiny_experiment(HUMAN, *changes) for changes in ((), ("annotate={repeats: 0.1, keys: {a: z}}",)))
    assert one.identity() == other.identity()


class Unlabelled(TinyDataset):
    """Nobody has labelled the training images."""

    def has_labels(self, split: str) -> bool:
        return split != "train"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((), "tiny train: has no label maps, and the oracle ground_truth answers from them; add them, or let people"),
        ((HUMAN, "grid=[{budget: [full]}]"), "tiny train: has no label maps, and full supervision needs them"),
        (
            (HUMAN, "evaluate={splits: {train: {}}, report: train}"),
            "evaluate.splits: split 'train' of tiny has no label",
        ),
    ],
)
def test_labels_that_are_needed_must_be_there(
    changes: tuple[str, ...], message: str, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", Unlabelled)
    check_plan(make_plan(tiny_experiment(HUMAN)), execution)
    with pytest.raises(DataError, match=message):
        check_plan(make_plan(tiny_experiment(*changes)), execution)
