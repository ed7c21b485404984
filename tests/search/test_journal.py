"""The records of samples: what is written before anything depends on it is there when the journal is opened again."""

from pathlib import Path

import pytest

from pixelpick_ray.search.design import Search
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


def records(store: Store) -> dict[str, Path]:
    folder = store.path / experiment_folder(SEARCH.experiment) / "samples"
    return {path.name: path for path in sorted(folder.iterdir())}


def test_what_is_recorded_is_there_when_the_journal_is_opened_again(store: Store, journal: Journal) -> None:
    assert (journal.samples, journal.best(), journal.is_complete(1)) == ([], None, False)
    assert not store.path.exists()  # nothing is written before
    schedules = {"train.schedule": {"name": "poly", "power": 0.9}, "train.epochs": 3, "model.width": None}
    report = LevelReport(0.5, {"0": 0.25, "1": 0.75}, {"0": ("a", "b"), "1": ("a", "c")}, 12.5)
    steps = (
        *(("issue", schedules, "optuna"), ("issue", OTHER, "optuna"), ("report", 0, report)),
        *(("report", 1, report_of(0.5)), ("report", 0, report_of(0.25, stage=1))),
        *(("stop", 1, "asha: rank 2 of the 2"), ("fail", 0, "OSError: the disk is full")),
    )
    for name, *arguments in steps:
        changed = getattr(journal, name)(*arguments)
        assert opened(store).samples == journal.samples
        assert journal.samples[changed.index] == changed
    first, second = journal.samples
    reports = (report, report_of(0.25, stage=1))
    assert first == Sample(0, schedules, "optuna", reports, error="OSError: the disk is full")
    assert second == Sample(1, OTHER, "optuna", (report_of(0.5),), stopped="asha: rank 2 of the 2")
    before = records(store)["00001.json"].read_bytes()
    schedules["train.epochs"] = 9  # does not reach the journal
    assert journal.report(0, report_of(0.5, stage=2)).values["train.epochs"] == 3
    assert opened(store).samples[0].error == ""  # a report clears it
    assert list(records(store)) == ["00000.json", "00001.json"]
    assert records(store)["00001.json"].read_bytes() == before  # records of others are untouched
    assert opened(store, search_of("search.seed=1")).samples == []
    assert opened(store, search_of("search.num_samples=99")).samples == journal.samples


def test_samples_are_read_in_the_order_of_issue_and_values_in_that_of_the_space(store: Store, journal: Journal) -> None:
    for lr in range(12):
        journal.issue({"train.optimizer.lr": lr + 1}, "random")
    found = [(sample.index, sample.values["train.optimizer.lr"]) for sample in opened(store).samples]
    assert found == [(index, index + 1) for index in range(12)]
    assert opened(store).issue(OWN, "random").index == 12
    assert (journal.samples[11].label, journal.samples[11].is_own) == ("sample 11", False)
    assert list(opened(store).samples[12].values) == list(OWN) == ["train.optimizer.lr", "acquire.strategy"]


def test_a_record_written_by_hand_is_read(store: Store, journal: Journal) -> None:
    journal.issue(OTHER, "optuna")
    records(store)["00000.json"].write_text("""{
      "index": 0, "origin": "file", "values": {"train.optimizer.lr": 1e-3, "acquire.strategy": "margin"},
      "reports": [
        {"score": 0.25, "mious": {"0": 0.2, "1": 0.3}, "fits": {"0": ["a"], "1": ["b"]}, "seconds": 3},
        {"score": 0.5, "mious": {"0": 0.4, "1": 0.6}, "fits": {"0": ["a", "c"], "1": ["b", "d"]}, "seconds": 7.5}
      ],
      "stopped": "asha: rank 2 of the 3 samples that had reached 20 px", "error": ""
    }""")
    (sample,) = opened(store).samples
    reports = (
        LevelReport(0.25, {"0": 0.2, "1": 0.3}, {"0": ("a",), "1": ("b",)}, 3),
        LevelReport(0.5, {"0": 0.4, "1": 0.6}, {"0": ("a", "c"), "1": ("b", "d")}, 7.5),
    )
    assert sample == Sample(0, OWN, "file", reports, stopped="asha: rank 2 of the 3 samples that had reached 20 px")
    assert (sample.is_own, sample.reports[1].miou) == (True, 0.5)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("[]", "is not a mapping"),
        ("{}", "is not valid (KeyError('values'))"),
        ('{"values": [], "reports": []}', "is not valid (AttributeError"),
        ('{"reports": [], "index": 0, "values": {}, "origin": "file", "more": 1}', "is not valid (TypeError"),
        ("{", "is not JSON"),
        ('{"reports": [], "index": 2, "values": {}, "origin": "file"}', "is not valid (ValueError"),
        (None, "is missing, although later samples exist"),
    ],
)
def test_a_damaged_record_is_told_and_made_again(store: Store, journal: Journal, record: str | None, told: str) -> None:
    for _ in range(3):
        add(journal, OWN, [0.1])
    path = records(store)["00001.json"]
    content = path.read_bytes()
    path.unlink()
    if record is not None:
        path.write_text(record)
    again = opened(store)
    (line,) = store.found_damaged
    assert line.startswith(f"{path.relative_to(store.path)}: {told}")
    assert [again.samples[at] for at in (0, 2)] == [journal.samples[at] for at in (0, 2)]
    assert again.samples[1] == Sample(1, SEARCH.drawn(1), "random")  # the same however often it is opened
    if record is not None:
        assert path.read_text() == record
    again.report(1, report_of(0.5))
    fresh = Store(store.path)
    assert opened(fresh).samples == again.samples
    assert [line.endswith(")") and told in line for line in fresh.damaged()] == [True]
    path.write_bytes(content)
    assert opened(store).samples == journal.samples


def test_a_search_is_complete_when_enough_is_over_and_settled_when_the_rest_failed(
    store: Store, journal: Journal
) -> None:
    add(journal, OWN, [0.1, 0.2, 0.3])
    journal.stop(add(journal, OTHER, [0.1]).index, "asha")
    assert [journal.is_complete(size) for size in (1, 2, 3)] == [True, True, False]
    last = add(journal, OTHER, [0.1, 0.2]).index
    assert [journal.is_complete(size) for size in (1, 2, 3)] == [False, False, False]
    assert not journal.is_settled(3)
    journal.fail(last, "OSError")
    assert not journal.is_complete(3)
    assert [opened(store).is_settled(size) for size in (2, 3, 4)] == [True, True, False]
    journal.report(last, report_of(0.3, stage=2))
    assert [opened(store).is_complete(size) for size in (3, 4)] == [True, False]
    again = add(journal, OTHER, [0.1]).index
    journal.fail(again, "OSError")
    journal.report(again, report_of(0.2, stage=1))  # another attempt has got further
    assert not journal.is_settled(4)


def test_the_best_is_the_finished_sample_with_the_highest_score_and_none_that_diverged(
    store: Store, journal: Journal
) -> None:
    add(journal, OWN, [0.1, 0.2, 0.3])
    journal.stop(add(journal, OTHER, [0.9, 0.9]).index, "asha")
    journal.fail(add(journal, OTHER, [0.8]).index, "OSError")
    add(journal, OTHER, [0.7, 0.8])
    journal.issue(OTHER, "optuna")
    assert journal.best() == journal.samples[0]
    add(journal, OTHER, [0.1, 0.1, 0.4])
    assert journal.best() == journal.samples[5]
    add(journal, OTHER, [0.5, 0.5, 0.35])  # was ahead, and is not any more
    add(journal, OTHER, [0.1, 0.1, 0.4])  # of equals the earlier one
    assert journal.best() == opened(store).best() == journal.samples[5]
    last = add(journal, OTHER, [0.9, 0.9]).index
    journal.fail(last, "the loss is nan")
    journal.diverge(last, "stage 2: the loss is nan")
    diverged = opened(store).samples[last]
    assert (diverged.diverged, diverged.error) == ("stage 2: the loss is nan", "")
    assert (journal.is_over(diverged), opened(store).best()) == (True, journal.samples[5])
