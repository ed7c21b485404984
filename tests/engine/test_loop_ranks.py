"""A whole chain on two ranks: the first one reads and writes the store for both."""

from pathlib import Path

import numpy as np
import torch

from pixelpick_ray.steps import Workplace
from pixelpick_ray.store import Store, experiment_folder
from tests.engine.helpers import tiny_experiment
from tests.engine.ranks import ALONE, Ranks, chain, chain_in_double


def results(store: Store) -> dict[str, bytes]:
    files = [path for kind in ("fit", "pick", "evaluation") for path in (store.path / kind).rglob("*.npz")]
    return {str(path.relative_to(store.path)): path.read_bytes() for path in files}


def test_two_ranks_leave_what_one_rank_leaves(ranks: Ranks, tmp_path: Path) -> None:
    """In float64, so that rounding moves no pixel: the same keys, picks and confusion matrices."""
    experiment = tiny_experiment("model.dropout=[0.0, 0.0, 0.0]", "evaluate.when=every_epoch", "train.epochs=2")
    one = Workplace(Store(tmp_path / "one"), tmp_path, tmp_path / "cache", keep_weights="last")
    two = Workplace(Store(tmp_path / "two"), tmp_path, tmp_path / "cache", keep_weights="last")
    chain_in_double(ALONE, experiment, one)
    first, second = ranks.run(chain_in_double, experiment, two)
    assert [event.kind for event in first if event.kind != "epoch"] == ["stage", "pick", "stage", "pick", "stage"]
    assert second == []  # only the first rank reports
    expected = results(one.store)
    assert len(expected) == 3 + 3
    assert results(two.store) == expected


def test_two_ranks_resume_what_one_rank_began(ranks: Ranks, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    place = Workplace(Store(tmp_path / "store"), tmp_path, tmp_path / "cache")
    shorter = tiny_experiment("grid=[{budget: [6]}]")
    chain(ALONE, shorter, place)
    before = results(place.store)
    first, _ = ranks.run(chain, experiment, place)
    stages = [event for event in first if event.kind == "stage"]
    assert [event.computed for event in stages] == [False, False, True]
    after = results(place.store)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2  # one pick, one evaluation
    again, _ = ranks.run(chain, experiment, place)
    assert not any(event.computed for event in again)
    (name,) = place.store.records(f"{experiment_folder(experiment)}/chains")
    kept = place.store.read_record(f"{experiment_folder(experiment)}/chains/{name}.json")
    assert len(kept["stages"]) == 3
    assert np.isfinite(first[-1].values["miou"])
    assert torch.get_num_threads() == 1
