"""Images held out of training: which they are, what stays as it was, and what is refused."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelpick_ray.config.keys import Source
from pixelpick_ray.config.trial import DatasetSpec, SizeSpec
from pixelpick_ray.context import Context
from pixelpick_ray.data.cache import PreparedSplit, prepare, training_names
from pixelpick_ray.data.camvid import CamVid
from pixelpick_ray.data.datasets import Dataset, known_facts, open_dataset, training_split
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.plan import Plan, Sources
from tests.support import stores as by_hand
from tests.support.data_folders import TREES, write_folder, write_voc
from tests.support.stores import check_plan, execution_at, tiny_plan

pytestmark = pytest.mark.long

WriteCamVid = Callable[..., Path]
SCENES = DatasetSpec(name="scenes", size=(9, 12))


def scenes(share: float | None = None) -> Dataset:
    """The generated scenes, with a share of the training images held out."""
    return open_dataset(SCENES.model_copy(update={"held_out": share}), Path("nowhere"))


@pytest.fixture(params=["scenes", *TREES])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> DatasetSpec:
    """A spec of each data set that holds out images, with files made for it in the folder of the test."""
    write, fields = TREES.get(request.param, (lambda data: None, {}))
    write(tmp_path)
    return DatasetSpec(name=request.param, held_out=0.3, **fields)


def both(spec: DatasetSpec, data: Path) -> tuple[Dataset, Dataset]:
    """The data set without its held-out images in the training split, and as it is without the option."""
    return open_dataset(spec, data), open_dataset(spec.model_copy(update={"held_out": None}), data)


# Which images


@pytest.mark.parametrize(
    ("share", "number"),
    [(0.001, 1), (0.02, 1), (0.1, 6), (0.25, 16), (0.5, 32), (0.96, 61), (0.97, 62)],
)
def test_a_share_of_the_training_images_is_held_out_rounded_and_at_least_one(share: float, number: int) -> None:
    dataset = scenes(share)
    assert len(dataset.names("held_out")) == number
    assert len(dataset.names("train")) == 64 - number


def test_the_held_out_images_are_the_first_by_the_hash_of_their_names() -> None:
    """Computed by sha256sum. They must never change, or what was held out before is trained on."""
    assert scenes(4 / 64).names("held_out") == ("train_0011", "train_0016", "train_0020", "train_0056")


def test_the_two_parts_are_the_training_split(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    training, held_out = reduced.names("train"), reduced.names("held_out")
    assert set(training).isdisjoint(held_out)
    assert tuple(sorted(training + held_out)) == whole.names("train")
    assert (list(training), list(held_out)) == (sorted(training), sorted(held_out))
    assert len(held_out) == (19 if spec.name == "scenes" else 1)


@given(st.floats(0.001, 0.97), st.floats(0.001, 0.97))
def test_the_images_of_a_smaller_share_are_among_those_of_a_larger_one(one: float, other: float) -> None:
    smaller, larger = (set(scenes(share).names("held_out")) for share in sorted((one, other)))
    assert smaller <= larger


@given(st.integers(0, 2**32), st.integers(2, 48))
def test_the_training_images_of_every_seed_are_drawn_from_the_others(seed: int, images: int) -> None:
    dataset = scenes(0.25)
    drawn = training_names(dataset.names("train"), images, seed)
    assert len(drawn) == images
    assert set(drawn).isdisjoint(dataset.names("held_out"))


def test_the_split_that_is_trained_on_is_the_one_that_is_divided(tmp_path: Path) -> None:
    write_voc(tmp_path)
    reduced, whole = both(DatasetSpec(name="voc", split="trainaug", held_out=0.3), tmp_path)
    assert training_split(reduced, reduced.spec) == "trainaug"
    assert whole.names("trainaug") == ("a", "f", "g")
    assert (reduced.names("trainaug"), reduced.names("held_out")) == (("a", "g"), ("f",))
    assert reduced.names("train") == whole.names("train") == ("a", "b", "c")
    # Labels of trainaug are other files than those of train, and f has none there.
    assert (reduced.read("held_out", "f")[1] == whole.read("trainaug", "f")[1]).all()


def test_of_a_folder_the_described_training_split_is_divided(tmp_path: Path) -> None:
    write_folder(tmp_path, train_split="val")
    reduced, whole = both(DatasetSpec(name="folder", path="leaves", held_out=0.3), tmp_path)
    assert (reduced.names("val"), reduced.names("held_out")) == (("leaf.v1.jpg", "leaf.v2.jpeg"), ("leaf.v0.png",))
    assert reduced.names("train") == whole.names("train")


def test_held_out_images_have_labels_where_the_training_images_have(tmp_path: Path) -> None:
    parts = {name: {"images": f"{name}/images", "labels": f"{name}/labels"} for name in ("train", "val")}
    for bare in ("train", "val"):
        write_folder(tmp_path, splits=parts | {bare: {"images": f"{bare}/images"}})
        dataset = open_dataset(DatasetSpec(name="folder", path="leaves", held_out=0.3), tmp_path)
        known = {split: dataset.has_labels(split) for split in ("train", "held_out", "val")}
        assert known == {"train": bare != "train", "held_out": bare != "train", "val": bare != "val"}
        labels = prepare(dataset, "held_out", SizeSpec(), tmp_path / "cache").labels
        assert (set(labels.tolist()) == {dataset.facts.unlabelled_index}) == (bare == "train")
    assert scenes(0.25).has_labels("held_out")


# What they are


def test_facts_gain_the_split_alone(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    assert reduced.facts == replace(whole.facts, splits=(*whole.facts.splits, "held_out"))
    assert known_facts(spec.name) in (whole.facts, None)


def test_images_and_labels_are_those_of_the_training_split(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    for split in ("train", "held_out"):
        for name in reduced.names(split)[:5]:
            for read, wanted in zip(reduced.read(split, name), whole.read("train", name), strict=True):
                assert read.tobytes() == wanted.tobytes()
                assert read.shape == wanted.shape


def test_files_and_sizes_are_those_of_the_data_set(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    for split, source in (("train", "train"), ("held_out", "train"), ("val", "val")):
        for name in reduced.names(split)[:5]:
            assert reduced.file_name(split, name) == whole.file_name(source, name)
            assert reduced.native_size(split, name) == whole.native_size(source, name)


def test_other_splits_are_untouched(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    for split in set(whole.facts.splits) - {"train"}:
        assert reduced.names(split) == whole.names(split)
        assert reduced.signature(split) == whole.signature(split)
        assert reduced.identity(split) == whole.identity(split)
        name = whole.names(split)[0]
        assert [part.tobytes() for part in reduced.read(split, name)] == [
            part.tobytes() for part in whole.read(split, name)
        ]


def test_fetching_fetches_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, object]] = []
    monkeypatch.setattr(CamVid, "fetch", lambda self, report: asked.append((self.path, report)))
    report = print
    open_dataset(DatasetSpec(name="camvid", held_out=0.3), tmp_path).fetch(report)
    assert asked == [(tmp_path / "camvid", report)]


def test_every_part_has_a_signature_and_an_identity_of_its_own(spec: DatasetSpec, tmp_path: Path) -> None:
    reduced, whole = both(spec, tmp_path)
    signatures = [*map(reduced.signature, reduced.facts.splits), whole.signature("train")]
    assert len({json.dumps(one) for one in signatures}) == len(signatures)
    assert len({json.dumps(reduced.identity(split)) for split in reduced.facts.splits}) == len(reduced.facts.splits)


def test_the_signature_of_each_part_changes_with_its_files(write_camvid: WriteCamVid) -> None:
    data = write_camvid(num_images=5)
    spec = DatasetSpec(name="camvid", held_out=0.4)
    dataset = open_dataset(spec, data)
    for split in ("train", "held_out"):
        before = dataset.signature(split)
        path = data / "camvid" / "trainannot" / dataset.names(split)[0]
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
        assert open_dataset(spec, data).signature(split) != before


# Prepared splits


def prepared_at(cache: Path, share: float | None, split: str = "train") -> PreparedSplit:
    return prepare(scenes(share), split, SCENES, cache)


def test_no_part_is_taken_for_another_in_one_cache(tmp_path: Path) -> None:
    shares = (None, 0.02, 0.05, 0.5)
    for _ in ("decoded", "from the cache"):
        whole = prepared_at(tmp_path, None)
        assert whole.names == scenes().names("train")
        for share in shares[1:]:
            for split in ("train", "held_out"):
                part = prepared_at(tmp_path, share, split)
                assert part.names == scenes(share).names(split)
                for at, name in enumerate(part.names):
                    assert (part.image(at) == whole.image(whole.index[name])).all()
                    assert (part.label(at) == whole.label(whole.index[name])).all()
    assert len(list(tmp_path.glob("scenes-train-*.lock"))) == len(shares)


def test_the_fingerprint_differs_whenever_the_images_do(tmp_path: Path) -> None:
    found = [prepared_at(tmp_path, share).fingerprint for share in (None, 0.02, 0.05, 0.5)]
    found += [prepared_at(tmp_path, share, "held_out").fingerprint for share in (0.02, 0.05, 0.5)]
    assert len(set(found)) == 7


def test_shares_that_hold_out_the_same_images_are_the_same_content(tmp_path: Path) -> None:
    for split in ("train", "held_out"):
        assert prepared_at(tmp_path, 0.25, split).fingerprint == prepared_at(tmp_path, 0.251, split).fingerprint
        assert len(list(tmp_path.glob(f"scenes-{split}-*.lock"))) == 1


def test_another_split_is_prepared_once_with_and_without(tmp_path: Path) -> None:
    assert prepared_at(tmp_path, None, "val").fingerprint == prepared_at(tmp_path, 0.25, "val").fingerprint
    assert len(list(tmp_path.glob("scenes-val-*.lock"))) == 1


def test_a_description_is_part_of_the_held_out_content(tmp_path: Path) -> None:
    spec = DatasetSpec(name="folder", path="leaves", held_out=0.3)
    found = set()
    for classes in (["soil", "stem", "leaf"], ["stem", "soil", "leaf"]):
        write_folder(tmp_path, classes=classes)
        found.add(prepare(open_dataset(spec, tmp_path), "held_out", SizeSpec(), tmp_path / "cache").fingerprint)
    assert len(found) == 2


# Plans and steps


EVALUATED = "evaluate={splits: {held_out: {}, test: {}}, report: test}"


def camvid_plan(*overrides: str, held_out: float | None = 0.4) -> Plan:
    share = "" if held_out is None else f", held_out: {held_out}"
    return tiny_plan(f"dataset={{name: camvid, size: [8, 10]{share}}}", *overrides)


def test_what_is_checked_before_a_start_is_each_part_once(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=5, splits=("train", "test"))
    told: list[tuple[str, int, int]] = []
    check_plan(camvid_plan(EVALUATED), execution_at(tmp_path, data), lambda *values: told.append(values))
    sizes = {"train": 3, "held_out": 2, "test": 5}
    assert told == [(f"camvid {split}", done + 1, size) for split, size in sizes.items() for done in range(size)]


def test_held_out_images_are_not_asked_for_candidates(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=5, splits=("train", "test"))
    blank = data / "camvid" / "trainannot" / "train_003.png"  # the first by the hash of its name
    Image.fromarray(np.full((8, 10), 11, np.uint8)).save(blank)
    check_plan(camvid_plan(), execution_at(tmp_path, data))
    with pytest.raises(DataError, match=r"train_003\.png has 0 pixels that are not void"):
        check_plan(camvid_plan(held_out=None), execution_at(tmp_path, data))


def test_a_number_of_images_counts_those_that_are_left(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=5, splits=("train", "test"))
    check_plan(camvid_plan("dataset.images=3"), execution_at(tmp_path, data))
    with pytest.raises(DataError, match=r"dataset\.images: 4 asked for, the training split has 3; lower it"):
        check_plan(camvid_plan("dataset.images=4"), execution_at(tmp_path, data))


def test_steps_train_on_what_is_left_and_evaluate_what_is_held_out(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=5, splits=("train", "test"))
    plan, execution = camvid_plan(EVALUATED, "grid=[{seed: [0, 1], budget: [2]}]"), execution_at(tmp_path, data)
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


def test_shares_change_the_content_of_the_training_split_alone(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=5, splits=("train", "test"))
    prints = []
    for share in (None, 0.2, 0.4):
        plan = camvid_plan(held_out=share)
        source = Sources(plan.experiment, execution_at(tmp_path, data)).of(plan.trials[0])
        assert source is not None
        prints.append(source.fingerprints)
    assert len({one["train"] for one in prints}) == 3
    assert len({one["test"] for one in prints}) == 1


# Keys


SOURCE = Source({"train": "aa", "test": "bb"}, "train", None)


def keys_of(plan: Plan) -> dict[str, str]:
    """The keys of the first trial, its contents being equal."""
    trial, evaluate = plan.trials[0], plan.experiment.evaluate
    return {**by_hand.keys_of(trial, evaluate, SOURCE), "chain": trial.chain_id}


def test_keys_of_trials_that_hold_nothing_out_are_older_than_the_option() -> None:
    """These digests were made before there was `held_out`."""
    older = {
        "initial": "0cdb951057ca105b48bce8ac7513bf05f8ba64ff02edd8a51d87dd1931a4f7f7",
        "fit": "c3cd4b71624fb6e2eb60886266ecc7594d9afe92f0288548b012c39cfde4d06d",
        "pick": "efca62d97fd27ca7b3857084de083a829470e021a1779f7dbaf1a22ff9c16be8",
        "evaluation": "5a0ee7ad31485c31fb8880ea90c40802424d5f1737ee91917a34a374b3c5256c",
        "chain": "e0e84c7a9a734f0127c893a1422da668be867ea36b6b4a2482235831837a6298",
    }
    assert keys_of(camvid_plan(held_out=None)) == keys_of(camvid_plan("dataset.held_out=null")) == older
    assert camvid_plan(held_out=None).trials[0].dataset.as_input() == {"name": "camvid", "size": [8, 10]}


def test_every_share_has_keys_of_its_own() -> None:
    found = [keys_of(camvid_plan(held_out=share)) for share in (None, 0.2, 0.4)]
    for step in found[0]:
        assert len({keys[step] for keys in found}) == 3, step


# What is refused


@pytest.mark.parametrize(
    ("share", "told"),
    [
        ("0", "greater than 0; got 0"),
        ("-0.1", "greater than 0; got -0.1"),
        ("1", "less than 1; got 1"),
        ("1.0", "less than 1; got 1.0"),
        ("20", "less than 1; got 20"),
        ("true", "a valid number; got True"),
        ("half", "a valid number; got 'half'"),
        (".nan", r"a finite number.*; got nan"),
    ],
)
def test_what_is_no_share_between_0_and_1_is_refused(share: str, told: str) -> None:
    with pytest.raises(SpecError, match=rf"tiny\.yaml: dataset\.held_out: .*{told}"):
        camvid_plan(f"dataset.held_out={share}")


@pytest.mark.parametrize(("number", "share", "left"), [(3, 0.5, 1), (2, 0.01, 1), (1, 0.5, 0), (64, 0.98, 1)])
def test_a_share_that_leaves_fewer_than_two_images_is_refused_with_what_to_do(
    write_camvid: WriteCamVid, number: int, share: float, left: int
) -> None:
    data = write_camvid(num_images=number)
    dataset = open_dataset(DatasetSpec(name="camvid", held_out=share), data)
    told = (
        rf"dataset\.held_out: {share} of the {number} images of camvid train leaves {left} to train on, batch norm "
        "needs at least 2; lower it, add images, or leave it out"
    )
    for ask in (dataset.names, dataset.signature):
        for split in ("train", "held_out"):
            with pytest.raises(DataError, match=told):
                ask(split)


def test_a_share_that_is_too_large_is_told_before_a_start(write_camvid: WriteCamVid, tmp_path: Path) -> None:
    data = write_camvid(num_images=3, splits=("train", "test"))
    with pytest.raises(DataError, match=r"dataset\.held_out: 0\.5 of the 3 images .* leaves 1 to train on"):
        check_plan(camvid_plan(held_out=0.5), execution_at(tmp_path, data))


def test_a_data_set_with_a_split_of_that_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    described = yaml.safe_load((folder / "dataset.yaml").read_text())
    described["splits"]["held_out"] = described["splits"].pop("val")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described))
    spec = DatasetSpec(name="folder", path="leaves", held_out=0.3)
    told = (
        r"dataset\.held_out: folder has a split 'held_out' of its own; leave dataset\.held_out out to evaluate that "
        "one, or give that one another name"
    )
    with pytest.raises(SpecError, match=told):
        open_dataset(spec, tmp_path)
    own = open_dataset(spec.model_copy(update={"held_out": None}), tmp_path)  # the way out
    assert set(own.facts.splits) == {"train", "held_out"}
    assert len(own.names("held_out")) == 3


def test_held_out_images_cannot_be_trained_on(tmp_path: Path) -> None:
    told = (
        r"dataset\.split: 'held_out' is what dataset\.held_out takes from the training images; give the split that it "
        "is taken from, one of train, val"
    )
    with pytest.raises(SpecError, match=told):
        camvid_plan("dataset.split=held_out")
    write_folder(tmp_path)
    with pytest.raises(SpecError, match=told):
        open_dataset(DatasetSpec(name="folder", path="leaves", split="held_out", held_out=0.3), tmp_path)


@pytest.mark.parametrize("evaluated", ["{held_out: {}, test: {}}", "{mine: {split: held_out}, test: {}}"])
def test_without_a_share_there_is_no_such_split(evaluated: str) -> None:
    evaluate = f"evaluate={{splits: {evaluated}, report: test}}"
    with pytest.raises(SpecError) as caught:
        camvid_plan(evaluate, held_out=None)
    assert str(caught.value) == "evaluate.splits: camvid has no split 'held_out'; it has train, val, test"
    assert len(camvid_plan(evaluate).trials) == 6


def test_a_grid_of_shares_needs_one_at_every_point() -> None:
    shares = "grid=[{{dataset.held_out: {}, budget: [2]}}]"
    assert len(camvid_plan(EVALUATED, shares.format([0.2, 0.4]), held_out=None).chains) == 2
    with pytest.raises(SpecError, match=r"evaluate\.splits: camvid has no split 'held_out'; it has train, val, test"):
        camvid_plan(EVALUATED, shares.format("[0.2, null]"), held_out=None)


def test_an_unknown_split_is_answered_with_the_held_out_one_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"camvid has no split 'heldout'; it has train, val, test, held_out"):
        camvid_plan("evaluate={splits: {heldout: {}}, report: heldout}")
    write_folder(tmp_path)
    plan = tiny_plan(
        "dataset={name: folder, path: leaves, held_out: 0.3}", "evaluate={splits: {heldout: {}}, report: heldout}"
    )
    with pytest.raises(SpecError, match=r"folder has no split 'heldout'; it has train, val, held_out"):
        check_plan(plan, execution_at(tmp_path, tmp_path))


def test_a_file_name_that_is_no_text_is_told_with_its_path(tmp_path: Path) -> None:
    folder: Any = write_folder(tmp_path) / "train"
    for part, suffix in (("images", "jpg"), ("labels", "png")):
        path = folder / part / f"leaf.v1.{suffix}"
        path.rename(path.with_name(f"leaf.\udcff.{suffix}"))
    dataset = open_dataset(DatasetSpec(name="folder", path="leaves", held_out=0.3), tmp_path)
    with pytest.raises(DataError, match=rf"{folder}/images: the file name 'leaf\.\\udcff\.jpg' is not one line of UTF"):
        dataset.signature("train")
