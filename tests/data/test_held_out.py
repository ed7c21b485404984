"""Images held out of training: which they are, what stays as it was, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from pixelpick_ray.context import Context
from pixelpick_ray.data.cache import PreparedSplit, prepare
from pixelpick_ray.data.camvid import CamVid
from pixelpick_ray.data.datasets import Dataset, known_facts, open_dataset, training_split
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.planning import Plan, Sources
from tests.support import stores as by_hand
from tests.support.data_folders import TREES, save, write_folder, write_voc
from tests.support.stores import check_plan, execution_at, tiny_plan

pytestmark = pytest.mark.long

WriteCamVid = Callable[..., Path]
SCENES = DatasetSpec(name="scenes", size=(9, 12))


def scenes(share: float | None = None) -> Dataset:
    """The generated scenes, with a share of the training images held out."""
    return open_dataset(SCENES.model_copy(update={"held_out": share}), Path("nowhere"))


def both(spec: DatasetSpec, data: Path) -> tuple[Dataset, Dataset]:
    """The data set without its held-out images in the training split, and as it is without the option."""
    return open_dataset(spec, data), open_dataset(spec.model_copy(update={"held_out": None}), data)


def test_a_share_of_the_training_images_is_held_out_rounded_and_at_least_one_of_those_of_a_larger_share() -> None:
    smaller = set[str]()
    for share, number in {0.001: 1, 0.02: 1, 0.1: 6, 0.25: 16, 0.5: 32, 0.96: 61, 0.97: 62}.items():
        dataset = scenes(share)
        assert (len(dataset.names("held_out")), len(dataset.names("train"))) == (number, 64 - number)
        larger = set(dataset.names("held_out"))
        assert smaller <= larger
        smaller = larger
    # The first by the hash of their names, by sha256sum; must never change, or what was held out before is trained on.
    assert scenes(4 / 64).names("held_out") == ("train_0011", "train_0016", "train_0020", "train_0056")


@pytest.mark.parametrize("name", ["scenes", *TREES])
def test_the_two_parts_are_the_training_split_and_other_splits_are_untouched(tmp_path: Path, name: str) -> None:
    """In images, labels, files and sizes; facts gain the split alone, and every part is known from the others."""
    write, fields = TREES.get(name, (lambda data: None, {}))
    write(tmp_path)
    reduced, whole = both(DatasetSpec(name=name, held_out=0.3, **fields), tmp_path)
    assert reduced.facts == replace(whole.facts, splits=(*whole.facts.splits, "held_out"))
    assert known_facts(name) in (whole.facts, None)
    training, held_out = reduced.names("train"), reduced.names("held_out")
    assert tuple(sorted(training + held_out)) == whole.names("train")
    assert (list(training), list(held_out)) == (sorted(training), sorted(held_out))
    assert len(held_out) == (19 if name == "scenes" else 1)
    others = set(whole.facts.splits) - {"train"}
    for split in others:
        for ask in ("names", "signature", "identity"):
            assert getattr(reduced, ask)(split) == getattr(whole, ask)(split)
    for split in ("train", "held_out", *others):
        source = split if split in others else "train"
        for one in reduced.names(split)[: 1 if split in others else 3]:
            for read, wanted in zip(reduced.read(split, one), whole.read(source, one), strict=True):
                assert (read.shape, read.tobytes()) == (wanted.shape, wanted.tobytes())
            assert reduced.file_name(split, one) == whole.file_name(source, one)
            assert reduced.native_size(split, one) == whole.native_size(source, one)
    signatures = [*map(reduced.signature, reduced.facts.splits), whole.signature("train")]
    assert len({json.dumps(one) for one in signatures}) == len(signatures)
    assert len({json.dumps(reduced.identity(split)) for split in reduced.facts.splits}) == len(reduced.facts.splits)


def test_of_a_folder_held_out_images_have_its_labels_and_its_description(tmp_path: Path) -> None:
    parts = {name: {"images": f"{name}/images", "labels": f"{name}/labels"} for name in ("train", "val")}
    found = set()
    for bare, classes in product(("train", "val"), ("soil stem leaf", "stem soil leaf")):
        write_folder(tmp_path, splits=parts | {bare: {"images": f"{bare}/images"}}, classes=classes.split())
        dataset = open_dataset(DatasetSpec(name="folder", path="leaves", held_out=0.3), tmp_path)
        known = {split: dataset.has_labels(split) for split in ("train", "held_out", "val")}
        assert known == {"train": bare != "train", "held_out": bare != "train", "val": bare != "val"}
        prepared = prepare(dataset, "held_out", SizeSpec(), tmp_path / "cache")
        assert (set(prepared.labels.tolist()) == {dataset.facts.unlabelled_index}) == (bare == "train")
        found.add(prepared.fingerprint)
    assert len(found) == 4
    assert scenes(0.25).has_labels("held_out")


def test_the_split_that_is_trained_on_is_the_one_that_is_divided(tmp_path: Path) -> None:
    write_voc(tmp_path)
    reduced, whole = both(DatasetSpec(name="voc", split="trainaug", held_out=0.3), tmp_path)
    assert training_split(reduced, reduced.spec) == "trainaug"
    assert whole.names("trainaug") == ("a", "f", "g")
    assert (reduced.names("trainaug"), reduced.names("held_out")) == (("a", "g"), ("f",))
    assert reduced.names("train") == whole.names("train") == ("a", "b", "c")
    # Labels of trainaug are other files than those of train, and f has none there.
    assert (reduced.read("held_out", "f")[1] == whole.read("trainaug", "f")[1]).all()
    write_folder(tmp_path, train_split="val")
    reduced, whole = both(DatasetSpec(name="folder", path="leaves", held_out=0.3), tmp_path)
    assert (reduced.names("val"), reduced.names("held_out")) == (("leaf.v1.jpg", "leaf.v2.jpeg"), ("leaf.v0.png",))
    assert reduced.names("train") == whole.names("train")


def test_fetching_fetches_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, object]] = []
    monkeypatch.setattr(CamVid, "fetch", lambda self, report: asked.append((self.path, report)))
    open_dataset(DatasetSpec(name="camvid", held_out=0.3), tmp_path).fetch(print)
    assert asked == [(tmp_path / "camvid", print)]


def prepared_at(data: Path, share: float | None, split: str = "train") -> PreparedSplit:
    return prepare(open_dataset(DatasetSpec(name="camvid", held_out=share), data), split, SizeSpec(), data / "cache")


def test_no_part_is_taken_for_another_in_one_cache(write_camvid: WriteCamVid) -> None:
    """Their fingerprints differ whenever the images do, and only then."""
    data, shares = write_camvid(num_images=20, splits=("train", "val")), {0.05: 1, 0.1: 2, 0.5: 10}
    for _ in ("decoded", "from the cache"):
        whole = prepared_at(data, None)
        prints = {whole.fingerprint}
        assert len(whole) == 20
        for (share, number), split in product(shares.items(), ("train", "held_out")):
            part = prepared_at(data, share, split)
            prints.add(part.fingerprint)
            assert len(part) == (number if split == "held_out" else 20 - number)
            for at, name in enumerate(part.names):
                assert (part.image(at) == whole.image(whole.index[name])).all()
                assert (part.label(at) == whole.label(whole.index[name])).all()
        assert len(prints) == 7
    for split, count in (("train", 4), ("held_out", 3), ("val", 1)):  # a share of the same images, and another split
        one, other = (prepared_at(data, share, split).fingerprint for share in (0.5, 0.501))
        assert one == other
        assert (split == "val") == (prepared_at(data, None, "val").fingerprint == one)
        assert len(list((data / "cache").glob(f"camvid-{split}-*.lock"))) == count


EVALUATED = "evaluate={splits: {held_out: {}, test: {}}, report: test}"


@pytest.fixture
def execution(write_camvid: WriteCamVid, tmp_path: Path) -> Execution:
    """On CamVid of five training and five test images; of the former the hash puts 003 first, then 002."""
    return execution_at(tmp_path, write_camvid(num_images=5, splits=("train", "test")))


def camvid_plan(*overrides: str, held_out: float | None = 0.4) -> Plan:
    share = "" if held_out is None else f", held_out: {held_out}"
    return tiny_plan(f"dataset={{name: camvid, size: [8, 10]{share}}}", *overrides)


def test_what_is_checked_before_a_start_is_each_part_once(execution: Execution) -> None:
    """Held-out images are not asked for candidates, and a number of images counts those that are left."""
    told: list[tuple[str, int, int]] = []
    check_plan(camvid_plan(EVALUATED), execution, lambda *values: told.append(values))
    sizes = {"train": 3, "held_out": 2, "test": 5}
    assert told == [(f"camvid {split}", done + 1, size) for split, size in sizes.items() for done in range(size)]
    save(execution.data_path / "camvid" / "trainannot" / "train_003.png", np.full((8, 10), 11, np.uint8))
    check_plan(camvid_plan("dataset.images=3"), execution)
    for message, plan in (
        (r"train_003\.png has only 0 pixels that are not void", camvid_plan(held_out=None)),
        (r"dataset\.images: 4 requested, but the training split has 3; lower it", camvid_plan("dataset.images=4")),
        (r"dataset\.held_out: 0\.7 of the 5 images of camvid train leaves 1 for training", camvid_plan(held_out=0.7)),
    ):
        with pytest.raises(DataError, match=message):
            check_plan(plan, execution)


def test_steps_train_on_what_is_left_and_evaluate_what_is_held_out(execution: Execution) -> None:
    plan = camvid_plan(EVALUATED, "grid=[{seed: [0, 1], budget: [2]}]")
    sources = []
    for trial in plan.trials:
        context = Context(plan.experiment, trial, execution, World(0, 1, torch.device("cpu")), lambda event: None)
        assert context.data.names == ("train_000.png", "train_001.png", "train_004.png")
        assert context.split("held_out").names == ("train_002.png", "train_003.png")
        assert len(context.split("test")) == 5
        assert context.source == Sources(plan.experiment, execution).of(trial)
        sources.append(context.source)
    assert sources[0] == sources[1]  # whatever the seed
    assert sources[0].fingerprints.keys() == {"train", "held_out", "test"}


def keys_of(plan: Plan) -> dict[str, str]:
    """The keys of the first trial, its contents being equal."""
    trial, source = plan.trials[0], Source({"train": "aa", "test": "bb"}, "train", None)
    return {**by_hand.keys_of(trial, plan.experiment.evaluate, source), "chain": trial.chain_id}


def test_shares_have_keys_and_training_contents_of_their_own_and_none_has_the_older_ones(execution: Execution) -> None:
    """These digests were made before there was `held_out`."""
    older = {
        "initial": "0cdb951057ca105b48bce8ac7513bf05f8ba64ff02edd8a51d87dd1931a4f7f7",
        "fit": "c3cd4b71624fb6e2eb60886266ecc7594d9afe92f0288548b012c39cfde4d06d",
        "pick": "efca62d97fd27ca7b3857084de083a829470e021a1779f7dbaf1a22ff9c16be8",
        "evaluation": "5a0ee7ad31485c31fb8880ea90c40802424d5f1737ee91917a34a374b3c5256c",
        "chain": "e0e84c7a9a734f0127c893a1422da668be867ea36b6b4a2482235831837a6298",
    }
    plans = [camvid_plan(held_out=share) for share in (None, 0.2, 0.4)]
    assert keys_of(plans[0]) == keys_of(camvid_plan("dataset.held_out=null")) == older
    assert plans[0].trials[0].dataset.as_input() == {"name": "camvid", "size": [8, 10]}
    for step in older:
        assert len({keys_of(plan)[step] for plan in plans}) == 3, step
    sources = [Sources(plan.experiment, execution).of(plan.trials[0]) for plan in plans]
    assert len({source.fingerprints["train"] for source in sources}) == 3
    assert len({source.fingerprints["test"] for source in sources}) == 1


def test_a_data_set_with_a_split_of_that_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    splits = {"train": {"images": "train/images"}, "held_out": {"images": "val/images"}}
    write_folder(tmp_path, splits=splits)
    spec = DatasetSpec(name="folder", path="leaves", held_out=0.3)
    told = (
        r"dataset\.held_out: folder already has a split 'held_out'; leave dataset\.held_out out to use it, or rename it"
    )
    with pytest.raises(SpecError, match=told):
        open_dataset(spec, tmp_path)
    own = open_dataset(spec.model_copy(update={"held_out": None}), tmp_path)  # the way out
    assert set(own.facts.splits) == {"train", "held_out"}
    assert len(own.names("held_out")) == 3


def test_of_a_folder_splits_are_checked_with_the_held_out_one(tmp_path: Path) -> None:
    """Of other data sets they are before; wrong_inputs.yaml has what is told."""
    assert len(camvid_plan(EVALUATED, "grid=[{dataset.held_out: [0.2, 0.4], budget: [2]}]", held_out=None).chains) == 2
    write_folder(tmp_path)
    told = r"dataset\.split: 'held_out' is the split created by dataset\.held_out; give the split .* one of train, val"
    with pytest.raises(SpecError, match=told):
        open_dataset(DatasetSpec(name="folder", path="leaves", split="held_out", held_out=0.3), tmp_path)
    plan = tiny_plan(
        "dataset={name: folder, path: leaves, held_out: 0.3}", "evaluate={splits: {heldout: {}}, report: heldout}"
    )
    with pytest.raises(SpecError, match=r"folder has no split 'heldout'; it has train, val, held_out"):
        check_plan(plan, execution_at(tmp_path, tmp_path))
