"""Who proposes configurations, without a cluster: the file's own one first, and values as the space has them."""

import json
from typing import Any

import pytest

from pixelpick_ray.runner.searchers import make_proposer
from pixelpick_ray.search.design import Search
from tests.support.searches import TEXT, search_of

SPACE = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "train.optimizer.backbone_lr_factor": {"choice": [0.1, 1]},
    "train.schedule": {"choice": [{"name": "constant"}, {"name": "poly"}]},
    "train.batch_size": {"randint": [2, 8]},
    "acquire.stochastic": {"choice": [None, {"passes": 2}]},
}
OWN = {
    "train.optimizer.lr": 0.00123456,
    "train.optimizer.backbone_lr_factor": 1,
    "train.schedule": {"name": "poly"},
    "train.batch_size": 4,
    "acquire.stochastic": None,
}


def search_by(searcher: str) -> Search:
    file_text = TEXT.replace("lr: 1e-3}", "lr: 0.00123456, backbone_lr_factor: 1}, schedule: {name: poly}")
    return search_of(f"search.searcher={searcher}", f"search.space={json.dumps(SPACE)}", text=file_text)


def proposed(search: Search, number: int, known: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    proposer = make_proposer(search, known or [])
    return [dict(proposer.propose(f"trial {index}", index) or {}) for index in range(number)]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_proposals_are_the_files_own_then_configurations_with_short_numbers_and_known_ones_come_again(
    searcher: str,
) -> None:
    text = TEXT.replace("lr: 1e-3}", "lr: 0.00123456, backbone_lr_factor: 1}, schedule: {name: poly}")
    search = search_of(f"search.searcher={searcher}", f"search.space={json.dumps(SPACE)}", text=text)
    found = proposed(search, 9)
    assert json.dumps(found[0]) == json.dumps(OWN)  # to the last digit
    assert search.own_values == OWN
    assert len({json.dumps(values) for values in found}) > 2
    for values in found[1:]:
        search.check(values)
        assert list(values) == list(SPACE)
        assert all(search.spec.space[path].contains(value) for path, value in values.items())
        assert values["train.optimizer.lr"] == float(f"{values['train.optimizer.lr']:.4g}")
        assert type(values["train.batch_size"]) is int
        assert values["train.optimizer.backbone_lr_factor"] in (0.1, 1)
    assert proposed(search, 4, found[:4]) == found[:4]
