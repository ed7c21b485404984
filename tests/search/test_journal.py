"""The records of samples: what is written before anything depends on it is there when the journal is opened again."""

import json
from pathlib import Path

import pytest

from pixelpick_ray.errors import StoreError
from pixelpick_ray.search.design import Search
from pixelpick_ray.search.journal import OWN as BY_FILE
from pixelpick_ray.search.journal import Journal, LevelReport, Sample
from pixelpick_ray.store import Store, experiment_folder
from tests.support.searches import OTHER, OWN, add, report_of, search_of

SEARCH = search_of()  # of three levels


def opened(store: Store, search: Search = SEARCH) -> Journal:
    return Journal(store, search)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def journal(store: Store) -> Journal:
    return opened(store)


def records(store: Store) -> dict[str, bytes]:
    folder = store.path / experiment_folder(SEARCH.experiment) / "samples"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_journal_of_an_empty_store_is_empty_and_writes_nothing(store: Store, journal: Journal) -> None:
    assert journal.samples == []
    assert journal.best() is None
    assert not journal.is_complete(1)
    assert not store.path.exists()


def test_what_is_recorded_is_there_when_the_journal_is_opened_again(store: Store, journal: Journal) -> None:
    schedules = {"train.schedule": {"name": "poly", "power": 0.9}, "train.epochs": 3, "model.width": None}
    report = LevelReport(0.5, {"0": 0.25, "1": 0.75}, {"0": ("a", "b"), "1": ("a", "c")}, 12.5)
    steps = [
        lambda one: one.issue(schedules, "optuna"),
        lambda one: one.issue(OTHER, "optuna"),
        lambda one: one.report(0, report),
        lambda one: one.report(1, report_of(0.5)),
        lambda one: one.report(0, report_of(0.25, stage=1)),
        lambda one: one.stop(1, "asha: rank 2 of the 2"),
        lambda one: one.fail(0, "OSError: the disk is full"),
    ]
    for step in steps:
        step(journal)
        assert opened(store).samples == journal.samples
    first, second = journal.samples
    assert first == Sample(
        0, schedules, "optuna", (report, report_of(0.25, stage=1)), error="OSError: the disk is full"
    )
    assert second == Sample(1, OTHER, "optuna", (report_of(0.5),), stopped="asha: rank 2 of the 2")
    assert report.miou == 0.5


def test_a_record_is_written_before_the_call_returns_and_others_are_untouched(store: Store, journal: Journal) -> None:
    journal.issue(OWN, BY_FILE)
    journal.issue(OTHER, "optuna")
    before = records(store)
    assert list(before) == ["00000.json", "00001.json"]
    journal.report(1, report_of(0.5))
    after = records(store)
    assert after["00000.json"] == before["00000.json"]
    assert json.loads(after["00001.json"])["reports"][0]["score"] == 0.5


def test_every_call_returns_the_sample_as_it_is_now(journal: Journal) -> None:
    assert journal.issue(OWN, BY_FILE) == Sample(0, OWN, BY_FILE)
    assert journal.report(0, report_of(0.5)).reports == (report_of(0.5),)
    assert journal.stop(0, "why").stopped == "why"
    assert journal.fail(0, "how").error == "how"
    assert journal.samples == [Sample(0, OWN, BY_FILE, (report_of(0.5),), "why", "how")]


def test_later_changes_of_the_values_given_do_not_reach_the_journal(journal: Journal) -> None:
    values = dict(OWN)
    journal.issue(values, "optuna")
    values["train.optimizer.lr"] = 9
    assert journal.samples[0].values == OWN


def test_samples_are_numbered_and_read_in_the_order_of_issue(store: Store, journal: Journal) -> None:
    for lr in range(12):
        journal.issue({"train.optimizer.lr": lr + 1}, "random")
    assert [sample.index for sample in opened(store).samples] == list(range(12))
    assert [sample.values["train.optimizer.lr"] for sample in opened(store).samples] == list(range(1, 13))
    assert opened(store).issue(OWN, "random").index == 12
    assert journal.samples[11].label == "sample 11"


def test_the_files_own_configuration_is_known_by_its_origin(journal: Journal) -> None:
    assert journal.issue(OWN, BY_FILE).is_own
    assert not journal.issue(OWN, "optuna").is_own


def test_a_report_clears_the_error_of_an_earlier_attempt(store: Store, journal: Journal) -> None:
    journal.issue(OWN, BY_FILE)
    journal.fail(0, "OSError: once")
    journal.report(0, report_of(0.5))
    assert opened(store).samples[0].error == ""


def test_values_are_in_the_order_of_the_space_whenever_they_are_read(store: Store, journal: Journal) -> None:
    journal.issue(OWN, BY_FILE)
    assert list(OWN) == ["train.optimizer.lr", "acquire.strategy"]  # not sorted by name
    assert list(opened(store).samples[0].values) == list(OWN)


def test_journals_of_other_searches_are_apart(store: Store, journal: Journal) -> None:
    journal.issue(OWN, BY_FILE)
    assert opened(store, search_of("search.seed=1")).samples == []
    assert opened(store, search_of("search.num_samples=99")).samples == journal.samples


def test_a_record_written_by_hand_is_read(store: Store) -> None:
    text = """{
      "index": 0, "origin": "file", "values": {"train.optimizer.lr": 1e-3, "acquire.strategy": "margin"},
      "reports": [
        {"score": 0.25, "mious": {"0": 0.2, "1": 0.3}, "fits": {"0": ["a"], "1": ["b"]}, "seconds": 3},
        {"score": 0.5, "mious": {"0": 0.4, "1": 0.6}, "fits": {"0": ["a", "c"], "1": ["b", "d"]}, "seconds": 7.5}
      ],
      "stopped": "asha: rank 2 of the 3 that had come to 20 px", "error": ""
    }"""
    path = store.path / experiment_folder(SEARCH.experiment) / "samples" / "00000.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (sample,) = opened(store).samples
    assert (sample.index, sample.values, sample.is_own) == (0, OWN, True)
    assert sample.reports == (
        LevelReport(0.25, {"0": 0.2, "1": 0.3}, {"0": ("a",), "1": ("b",)}, 3),
        LevelReport(0.5, {"0": 0.4, "1": 0.6}, {"0": ("a", "c"), "1": ("b", "d")}, 7.5),
    )
    assert sample.stopped == "asha: rank 2 of the 3 that had come to 20 px"
    assert sample.reports[1].miou == 0.5


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("[]", "is damaged: is not a mapping"),
        ("{}", "is no record of a sample (KeyError('values'))"),
        ('{"values": {}}', "is no record of a sample (KeyError('reports'))"),
        ('{"values": [], "reports": []}', "is no record of a sample (AttributeError"),
        ('{"values": {}, "reports": []}', "is no record of a sample (TypeError"),
        ('{"values": {}, "reports": [{"score": 1}]}', "is no record of a sample (KeyError('fits'))"),
        (
            '{"reports": [], "index": 0, "values": {}, "origin": "file", "more": 1}',
            "is no record of a sample (TypeError",
        ),
        ("{", "is damaged: is not JSON"),
    ],
)
def test_a_record_that_is_none_is_refused_with_its_path(store: Store, journal: Journal, record: str, told: str) -> None:
    journal.issue(OWN, BY_FILE)
    path = store.path / experiment_folder(SEARCH.experiment) / "samples" / "00000.json"
    path.write_text(record)
    with pytest.raises(StoreError) as caught:
        opened(store)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_record_that_is_missing_among_others_is_told(store: Store, journal: Journal) -> None:
    for _ in range(3):
        add(journal, OWN, [0.1])
    path = store.path / experiment_folder(SEARCH.experiment) / "samples" / "00001.json"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError) as caught:
        opened(store)
    assert str(caught.value).startswith(f"{path}: is missing, later samples are there; put it back")
    path.write_bytes(content)
    assert opened(store).samples == journal.samples


def test_a_sample_is_over_when_it_is_finished_or_stopped(journal: Journal) -> None:
    finished = add(journal, OWN, [0.1, 0.2, 0.3])
    running = add(journal, OWN, [0.1, 0.2])
    stopped = journal.stop(add(journal, OWN, [0.1]).index, "asha")
    failed = journal.fail(add(journal, OWN, [0.1, 0.2]).index, "OSError")
    samples = [finished, running, stopped, failed, journal.issue(OWN, "optuna")]
    assert [journal.is_finished(sample) for sample in samples] == [True, False, False, False, False]
    assert [journal.is_over(sample) for sample in samples] == [True, False, True, False, False]


def test_a_search_is_complete_when_enough_samples_are_over_and_none_is_not(store: Store, journal: Journal) -> None:
    add(journal, OWN, [0.1, 0.2, 0.3])
    journal.stop(add(journal, OTHER, [0.1]).index, "asha")
    assert [journal.is_complete(size) for size in (1, 2, 3)] == [True, True, False]
    last = add(journal, OTHER, [0.1, 0.2]).index
    assert [journal.is_complete(size) for size in (1, 2, 3)] == [False, False, False]
    journal.fail(last, "OSError")
    assert not journal.is_complete(3)
    journal.report(last, report_of(0.3, stage=2))
    assert [opened(store).is_complete(size) for size in (3, 4)] == [True, False]


def test_a_search_is_settled_when_what_is_not_over_has_failed(store: Store, journal: Journal) -> None:
    add(journal, OWN, [0.1, 0.2, 0.3])
    last = add(journal, OTHER, [0.1]).index
    assert not journal.is_settled(2)
    journal.fail(last, "OSError")
    assert [opened(store).is_settled(size) for size in (1, 2, 3)] == [True, True, False]
    assert not journal.is_complete(2)
    journal.report(last, report_of(0.2, stage=1))  # another attempt has got further
    assert not journal.is_settled(2)


def test_the_best_is_the_finished_sample_with_the_highest_score(journal: Journal) -> None:
    add(journal, OWN, [0.1, 0.2, 0.3])
    journal.stop(add(journal, OTHER, [0.9, 0.9]).index, "asha")
    journal.fail(add(journal, OTHER, [0.8]).index, "OSError")
    add(journal, OTHER, [0.7, 0.8])
    journal.issue(OTHER, "optuna")
    assert journal.best() == journal.samples[0]
    add(journal, OTHER, [0.1, 0.1, 0.4])
    assert journal.best() == journal.samples[5]
    add(journal, OTHER, [0.5, 0.5, 0.35])  # was ahead, and is not any more
    assert journal.best() == journal.samples[5]


def test_of_equals_the_earlier_one_is_the_best(store: Store, journal: Journal) -> None:
    for score in (0.2, 0.4, 0.4, 0.3, 0.4):
        add(journal, OTHER, [0.1, 0.1, score])
    for one in (journal, opened(store)):
        best = one.best()
        assert best.index == 1
