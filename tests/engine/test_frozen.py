"""Heads on the features of a frozen backbone: against a plain script, on one and two ranks, and in chains."""

import dataclasses
import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pixelpick_ray.active.metrics import miou
from pixelpick_ray.config.model import KnnSpec, LinearSpec, MlpSpec, ModelSpec, PrototypeSpec, ViewSpec
from pixelpick_ray.config.networks import features_bytes
from pixelpick_ray.config.trial import AcquireSpec, DatasetSpec, StochasticSpec
from pixelpick_ray.data import datasets
from pixelpick_ray.data.cache import PreparedSplit
from pixelpick_ray.data.streams import stream_seed
from pixelpick_ray.engine import features as features_module
from pixelpick_ray.engine import score as score_module
from pixelpick_ray.engine.checkpoint import evaluate_checkpoint
from pixelpick_ray.engine.features import BLOCK_IMAGES, Features, prepare_features
from pixelpick_ray.engine.fit import fit
from pixelpick_ray.engine.frozen import FrozenModel, labelled_vectors, loss_of
from pixelpick_ray.engine.score import evaluate, pick
from pixelpick_ray.engine.world import World
from pixelpick_ray.errors import DataError
from pixelpick_ray.events import ChainDone, StageDone
from pixelpick_ray.models.extractor import build_extractor
from pixelpick_ray.models.heads import fit_head
from pixelpick_ray.models.segmentation import build_model
from tests.engine.test_loop_ranks import results
from tests.support.ranks import ALONE, Ranks, chain
from tests.support.tiny_data import (
    CLASSES,
    FACTS,
    VOID,
    TinyDataset,
    label_some,
    place_at,
    tiny_data,
    tiny_experiment,
    tiny_job,
)

pytestmark = pytest.mark.training

HEADS: list[Any] = [LinearSpec(l2=0.01), MlpSpec(hidden=(8,), epochs=3), KnnSpec(k=3), PrototypeSpec()]
MIXED = ((32, 48), (40, 41))


def spec(head: Any = HEADS[0], backbone: str = "test_resnet", **fields: Any) -> ModelSpec:
    return ModelSpec(backbone=backbone, architecture=head.name, head=head, pretrained="none", frozen=True, **fields)


def features_at(cache: Path, prepared: PreparedSplit, model: ModelSpec, seed: int = 3, **more: Any) -> Features:
    return prepare_features(prepared, model, FACTS, ALONE, data_path=cache, cache_path=cache, seed=seed, **more)


@pytest.fixture(autouse=True)
def nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_opened", {})


def fitted(cache: Path, head: Any, *, shapes: Any = MIXED, full: bool = False) -> tuple[FrozenModel, Any, Any]:
    """A head fitted to some labels of tiny data, these data and the labels."""
    data, model = tiny_data(5, shapes), spec(head)
    labels = label_some(data, [6, 5, 7, 6, 4])
    labelled = labelled_vectors(data, [features_at(cache, data.prepared, model)], None if full else labels)
    fitted_head = fit_head(head, labelled, num_classes=CLASSES, seed=3, stage=0)
    return FrozenModel(fitted_head, lambda prepared: features_at(cache, prepared, model)), data, labels


# Against a plain script


def plain_maps(prepared: PreparedSplit, position: int, scale: float = 1.0) -> torch.Tensor:
    """Joined features of one image at stride 8, written down once more."""
    torch.manual_seed(stream_seed(3, "initialise", 0))
    network = timm.create_model("test_resnet", pretrained=False, features_only=True, output_stride=32).eval()
    image = torch.from_numpy(prepared.image(position).copy()).permute(2, 0, 1)[None] / 255
    image = (image - torch.tensor(FACTS.mean)[:, None, None]) / torch.tensor(FACTS.std)[:, None, None]
    h, w = (max(2, round(side * scale / 8)) for side in prepared.shape(position))
    if image.shape[2:] != (8 * h, 8 * w):
        image = F.interpolate(image, (8 * h, 8 * w), mode="bilinear", antialias=True)
    levels = []
    with torch.no_grad():
        for level in network(image):
            finer = level.shape[2] >= h and level.shape[3] >= w
            resized = F.adaptive_avg_pool2d(level, (h, w)) if finer else F.interpolate(level, (h, w), mode="bilinear")
            levels.append(resized)
    return torch.cat(levels, dim=1)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_features_are_those_of_a_plain_script(tmp_path: Path, scale: float) -> None:
    data = tiny_data(3, MIXED)
    found = features_at(tmp_path, data.prepared, spec(input_scale=scale))
    for position in range(3):
        expected = plain_maps(data.prepared, position, scale)
        torch.testing.assert_close(found.maps([position]), expected, atol=2e-3, rtol=2e-3)  # kept as float16


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_the_mean_iou_is_that_of_a_plain_script(tmp_path: Path, head: Any) -> None:
    model, data, _ = fitted(tmp_path, head)
    confusion, examples = evaluate(model, data.prepared, FACTS, ALONE)
    expected = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for position in range(len(data.prepared)):
        size = data.prepared.shape(position)
        with torch.no_grad():
            logits = model.head(features_at(tmp_path, data.prepared, spec(head)).maps([position]))
            full = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        truth, predicted = data.prepared.label(position), full[0].argmax(dim=0).numpy()
        np.add.at(expected, (truth[truth != VOID], predicted[truth != VOID]), 1)
    assert abs(miou(confusion) - miou(expected)) < 1e-4
    assert confusion.sum() == expected.sum()
    assert set(examples) <= set(data.prepared.names)


@pytest.mark.parametrize("full", [False, True])
def test_views_add_the_vectors_of_the_same_pixels_in_other_images(tmp_path: Path, full: bool) -> None:
    data, prepared = tiny_data(2), tiny_data(2).prepared
    pixels = np.arange(2 * 32 * 48).reshape(2, 32, 48)[:, :, ::-1].flatten()
    other = dataclasses.replace(prepared, images=prepared.images[pixels], labels=prepared.labels[pixels])
    flipped = dataclasses.replace(data, prepared=other)
    labels = None if full else label_some(data, [5, 3])
    mirrored = None if labels is None else dataclasses.replace(labels, x=47 - labels.x)
    view = features_at(tmp_path, data.prepared, spec(), view=ViewSpec(scale=1.5, flip=True))
    both = labelled_vectors(data, [features_at(tmp_path, data.prepared, spec()), view], labels)
    own = labelled_vectors(data, [features_at(tmp_path, data.prepared, spec())], labels)
    theirs = labelled_vectors(flipped, [features_at(tmp_path / "other", other, spec(input_scale=1.5))], mirrored)
    assert len(both.vectors) == len(own.vectors) + len(theirs.vectors)
    np.testing.assert_array_equal(both.vectors[: len(own.vectors)], own.vectors)
    order = np.lexsort(both.vectors[len(own.vectors) :].T), np.lexsort(theirs.vectors.T)
    np.testing.assert_allclose(both.vectors[len(own.vectors) :][order[0]], theirs.vectors[order[1]], atol=1e-3)
    np.testing.assert_array_equal(both.counts[len(own.vectors) :][order[0]], theirs.counts[order[1]])


def test_vectors_at_labelled_pixels_are_interpolated_as_logits_are(tmp_path: Path) -> None:
    data = tiny_data(2)
    found, labels = features_at(tmp_path, data.prepared, spec()), label_some(data, [5, 3])
    labelled = labelled_vectors(data, [found], labels)
    full = F.interpolate(found.maps([0, 1]), (32, 48), mode="bilinear", align_corners=True)
    image = np.repeat([0, 1], [5, 3])
    expected = full[image, :, labels.y.astype(np.int64), labels.x.astype(np.int64)]
    np.testing.assert_allclose(labelled.vectors, expected.numpy(), atol=1e-4)
    np.testing.assert_array_equal(labelled.counts.argmax(axis=1), labels.label)
    np.testing.assert_array_equal(labelled.images, image)


def test_full_supervision_counts_every_pixel_with_a_class_once(tmp_path: Path) -> None:
    data = tiny_data(3, MIXED)
    labelled = labelled_vectors(data, [features_at(tmp_path, data.prepared, spec())], None)
    counts = [np.bincount(data.prepared.label(at).ravel(), minlength=256)[:CLASSES] for at in range(3)]
    for position in range(3):
        np.testing.assert_array_equal(labelled.counts[labelled.images == position].sum(axis=0), counts[position])
    some = dataclasses.replace(data, positions=np.asarray([0, 2]))
    fewer = labelled_vectors(some, [features_at(tmp_path, data.prepared, spec())], None)
    np.testing.assert_array_equal(fewer.counts.sum(axis=0), counts[0] + counts[2])


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
@pytest.mark.parametrize("full", [False, True])
def test_a_head_learns_from_features_of_a_random_backbone(tmp_path: Path, head: Any, full: bool) -> None:
    model, data, labels = fitted(tmp_path, head, full=full)
    labelled = labelled_vectors(data, [model.features_of(data.prepared)], None if full else labels)
    if isinstance(head, LinearSpec | KnnSpec):
        assert loss_of(model.head, labelled) < np.log(CLASSES)
    confusion, _ = evaluate(model, data.prepared, FACTS, ALONE)
    assert np.trace(confusion) / confusion.sum() > 1.2 / CLASSES


# Picks


@pytest.mark.parametrize("strategy", ["margin", "entropy", "least_confidence"])
@pytest.mark.parametrize("pool_fraction", [0.0, 0.05, 0.9])
def test_picks_are_those_of_full_size_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, pool_fraction: float
) -> None:
    model, data, labels = fitted(tmp_path, HEADS[0])
    acquire = AcquireSpec(strategy=strategy, pixels_per_stage=4, pool_fraction=pool_fraction)
    quick = pick(model, data, labels, acquire, ALONE, seed=0, stage=0)
    monkeypatch.setattr("pixelpick_ray.engine.score._by_cells", lambda model, world: False)
    full = pick(model, data, labels, acquire, ALONE, seed=0, stage=0)
    np.testing.assert_array_equal(quick.y, full.y)
    np.testing.assert_array_equal(quick.x, full.x)
    np.testing.assert_allclose(quick.entropy, full.entropy, atol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_nothing_depends_on_the_size_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Any) -> None:
    model, data, labels = fitted(tmp_path, head)
    acquire, found = AcquireSpec(pixels_per_stage=4), list[Any]()
    for images in (1, 3):
        monkeypatch.setitem(score_module.BATCH_PIXELS, "cpu", images * 32 * 48)
        picked = pick(model, data, labels, acquire, ALONE, seed=0, stage=0)
        found.append((picked.y.tolist(), picked.x.tolist(), evaluate(model, data.prepared, FACTS, ALONE)[0].tolist()))
    assert found[0] == found[1]


def test_bald_and_votes_draw_the_dropout_of_a_perceptron(tmp_path: Path) -> None:
    model, data, labels = fitted(tmp_path, HEADS[1])
    for strategy, vote in (("bald", "soft"), ("margin", "soft"), ("entropy", "hard")):
        acquire = AcquireSpec(strategy=strategy, pixels_per_stage=3, stochastic=StochasticSpec(passes=4, vote=vote))
        one, again, other = (pick(model, data, labels, acquire, ALONE, seed=seed, stage=0) for seed in (0, 0, 1))
        assert len(one) == 15
        np.testing.assert_array_equal(one.y, again.y)
        assert not np.array_equal(one.y, other.y)


# The cache


def test_features_are_computed_once_and_damaged_ones_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(BLOCK_IMAGES + 3)
    first = np.array(features_at(tmp_path, data.prepared, spec()).vectors)
    (path,) = tmp_path.glob("tiny-train-features-*/features.bin")
    with monkeypatch.context() as patch:
        patch.setattr(features_module, "_compute_some", None)
        features_module._opened.clear()
        np.testing.assert_array_equal(features_at(tmp_path, data.prepared, spec()).vectors, first)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    features_module._opened.clear()
    np.testing.assert_array_equal(features_at(tmp_path, data.prepared, spec()).vectors, first)


def test_a_disk_that_loses_what_is_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = features_module._Files.write

    def forgetful(entry: Any, block: int, vectors: Any) -> None:
        write(entry, block, vectors)
        with open(entry.folder / "features.bin", "r+b") as file:
            file.write(b"other")

    monkeypatch.setattr(features_module._Files, "write", forgetful)
    with pytest.raises(DataError, match=r"what is read back is never what was written; is the disk faulty\?"):
        features_at(tmp_path, tiny_data(2).prepared, spec())


def test_what_a_killed_process_left_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(2 * BLOCK_IMAGES)
    whole = np.array(features_at(tmp_path / "other", data.prepared, spec()).vectors)
    features_module._opened.clear()
    write, written = features_module._Files.write, list[int]()

    def killed(entry: Any, block: int, vectors: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(block)
        write(entry, block, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(features_module._Files, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            features_at(tmp_path, data.prepared, spec())
    blocks = list[int]()

    def noted(entry: Any, block: int, vectors: Any) -> None:
        blocks.append(block)
        write(entry, block, vectors)

    monkeypatch.setattr(features_module._Files, "write", noted)
    np.testing.assert_array_equal(features_at(tmp_path, data.prepared, spec()).vectors, whole)
    assert blocks == [1]


def _compute(cache: Path, results_: Any) -> None:
    torch.set_num_threads(1)
    found = features_at(cache, tiny_data(3 * BLOCK_IMAGES).prepared, spec())
    results_.put(found.vectors.tobytes())


def test_processes_that_need_the_same_features_make_them_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_compute, args=(tmp_path, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1] == features_at(tmp_path, tiny_data(3 * BLOCK_IMAGES).prepared, spec()).vectors.tobytes()


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError, match=r"No space left on device.*0\.0 GB are needed; give another folder with --cache"
    ):
        features_at(tmp_path, tiny_data(2).prepared, spec())


def test_features_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, std=(1e-7, 1e-7, 1e-7))
    where = {"data_path": tmp_path, "cache_path": tmp_path, "seed": 3}
    with pytest.raises(DataError, match=r"image img_00: features are beyond what float16 holds"):
        prepare_features(tiny_data(2).prepared, spec(), facts, ALONE, **where)


@pytest.mark.parametrize(
    "fields",
    [{"input_scale": 2.0}, {"layers": (-1,)}, {"layers": (4, 8)}, {"feature_stride": 4}, {"output_stride": 16}],
    ids=str,
)
def test_what_decides_features_is_in_their_key(tmp_path: Path, fields: dict[str, Any]) -> None:
    data = tiny_data(2)
    usual, other = features_at(tmp_path, data.prepared, spec()), features_at(tmp_path, data.prepared, spec(**fields))
    assert len(list(tmp_path.glob("tiny-train-features-*"))) == 2
    assert usual.vectors.shape != other.vectors.shape or not np.array_equal(usual.vectors, other.vectors)


def test_a_random_backbone_is_one_of_the_seed_and_the_head_is_in_no_key(tmp_path: Path) -> None:
    data = tiny_data(2)
    for head in HEADS:
        features_at(tmp_path, data.prepared, spec(head))
    assert len(list(tmp_path.glob("tiny-train-features-*"))) == 1
    features_at(tmp_path, data.prepared, spec(), seed=4)
    assert len(list(tmp_path.glob("tiny-train-features-*"))) == 2


# Chains

FROZEN = "model={backbone: test_resnet, pretrained: none, frozen: true, head: %s}", "train=null"


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("head", ["linear", "{name: mlp, hidden: [8], epochs: 2}", "{name: knn, k: 3}", "prototype"])
def test_two_ranks_leave_what_one_rank_leaves(ranks: Ranks, tmp_path: Path, head: str, backbone: str) -> None:
    experiment = tiny_experiment(FROZEN[0].replace("test_resnet", backbone) % head, FROZEN[1])
    one, two = (place_at(tmp_path / name, tmp_path, tmp_path / "cache", keep_weights="all") for name in ("one", "two"))
    chain(ALONE, experiment, one)
    events, _ = ranks.run(chain, experiment, two)
    assert isinstance(events[-1], ChainDone)
    expected = results(one.results)
    assert len(expected) == 3 + 3
    assert results(two.results) == expected


def test_stored_weights_of_a_head_measure_what_was_measured(tmp_path: Path) -> None:
    """A second evaluation, of the stored weights, is that of the model in memory."""
    experiment = tiny_experiment(FROZEN[0] % "linear", FROZEN[1])
    place = place_at(tmp_path / "store", tmp_path, tmp_path / "cache", keep_weights="all")
    first = [event for event in chain(ALONE, experiment, place) if isinstance(event, StageDone)]
    for path in (place.results.path / "evaluation").iterdir():
        place.results.discard("evaluation", path.name)
    again = [event for event in chain(ALONE, experiment, place) if isinstance(event, StageDone)]
    assert [event.trained for event in again] == [False, False, False]
    assert [event.miou for event in again] == [event.miou for event in first]


@pytest.mark.parametrize("head", ["linear", "{name: mlp, hidden: [8], epochs: 2}", "{name: knn, k: 3}", "prototype"])
def test_a_stored_head_is_evaluated_as_the_loop_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    experiment = tiny_experiment(FROZEN[0] % head, FROZEN[1], "model.normalise={mean: [0.3, 0.3, 0.3], std: [1, 1, 1]}")
    place = place_at(tmp_path / "store", tmp_path, tmp_path / "cache", keep_weights="all")
    chain(ALONE, experiment, place)
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    stored = {}
    for path in (place.results.path / "evaluation").glob("*/confusion.npz"):
        fit_key = json.loads(path.with_name("input.json").read_text())["fit"]
        stored[fit_key] = np.load(path)["confusion"][-1]
    assert len(stored) == 3
    for fit_key, expected in stored.items():
        weights = place.results.path / "fit" / fit_key / "weights.safetensors"
        where = {"data_path": tmp_path, "cache_path": tmp_path / "cache", "device": torch.device("cpu")}
        names, found = evaluate_checkpoint(weights, DatasetSpec(name="tiny"), "val", **where)
        assert names == FACTS.class_names
        np.testing.assert_array_equal(found, expected)


def test_a_head_is_not_read_onto_a_backbone_with_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    weights = tmp_path / "weights" / "test_resnet.imagenet.safetensors"
    weights.parent.mkdir()
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    experiment = tiny_experiment(FROZEN[0].replace("pretrained: none, ", "") % "linear", FROZEN[1])
    place = place_at(tmp_path / "store", tmp_path, tmp_path / "cache", keep_weights="all")
    chain(ALONE, experiment, place)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    (path, *_) = (place.results.path / "fit").glob("*/weights.safetensors")
    where = {"data_path": tmp_path, "cache_path": tmp_path / "cache", "device": torch.device("cpu")}
    with pytest.raises(DataError, match=r"was fitted to features of a test_resnet with other weights than those of"):
        evaluate_checkpoint(path, DatasetSpec(name="tiny"), "val", **where)


def test_a_decoder_learns_on_a_frozen_backbone_that_stays_as_it_is() -> None:
    data = tiny_data(4)
    job = tiny_job(data, label_some(data, [9, 9, 9, 9]))
    frozen = dataclasses.replace(job, model=job.model.model_copy(update={"frozen": True}))
    fresh = build_model(frozen.model, num_classes=CLASSES, data_path=job.data_path, seed=job.seed, stage=job.stage)
    before, trained = fresh.state_dict(), fit(frozen, ALONE, lambda epoch: None).state_dict()
    for name, value in trained.items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(trained["classifier.weight"], before["classifier.weight"])


# Any network

VITS = "vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 test_vit swin_tiny_patch4_window7_224 convnext_atto"


@pytest.mark.parametrize("backbone", VITS.split())
def test_any_network_gives_maps_of_any_size(backbone: str) -> None:
    extractor = build_extractor(spec(backbone=backbone), data_path=Path("no-data"), seed=0)
    images = torch.randn(2, 3, 90, 131, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = extractor(images)
        again = build_extractor(spec(backbone=backbone), data_path=Path("no-data"), seed=0)(images)
    assert found.shape == (2, extractor.channels, *extractor.grid((90, 131)))
    assert torch.equal(found, again)
    assert torch.isfinite(found).all()
    assert not torch.equal(found[0], found[1])


def test_the_maps_of_a_vit_are_its_patches_in_place_without_prefix_tokens() -> None:
    """The features of a patch change most where its pixels change."""
    extractor = build_extractor(spec(backbone="vit_small_patch14_dinov2"), data_path=Path("no-data"), seed=0)
    images = torch.zeros(1, 3, 84, 112)
    changed = images.clone()
    changed[:, :, 28:42, 56:70] = 3.0  # the patch in row 2, column 4
    with torch.inference_mode():
        moved = (extractor(changed) - extractor(images)).norm(dim=1)[0]
    assert extractor.grid((84, 112)) == (6, 8)
    assert divmod(int(moved.argmax()), 8) == (2, 4)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_the_weights_of_a_whole_network_are_those_of_its_features(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(5)
    whole = timm.create_model(backbone, pretrained=False, num_classes=0).eval()
    (tmp_path / "weights").mkdir()
    save_file(whole.state_dict(), tmp_path / "weights" / f"{backbone}.imagenet.safetensors")
    model = spec(backbone=backbone, layers=(-1,)).model_copy(update={"pretrained": "imagenet"})
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    extractor = build_extractor(model, data_path=tmp_path, seed=0)
    with torch.inference_mode():
        last = extractor.network(images)[-1]
        expected = whole.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[-1]
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


# Room for features


def test_features_used_longest_ago_make_room(tmp_path: Path) -> None:
    data = tiny_data(3)
    scales = [1.0, 1.5, 2.0]
    for age, scale in enumerate(scales):
        features_at(tmp_path, data.prepared, spec(input_scale=scale))
        (new,) = [path for path in tmp_path.glob("*-features-*") if path.stat().st_mtime > 2e8]
        os.utime(new, (1e8 + age,) * 2)
    sizes = {path: (path / "features.bin").stat().st_size for path in tmp_path.glob("*-features-*")}
    oldest = min(sizes, key=lambda path: path.stat().st_mtime)
    features_module._opened.clear()
    model = spec(input_scale=2.5)
    needed = features_bytes(model, [(32, 48)] * 3)
    limit = sum(sizes.values()) + needed - 1
    features_at(tmp_path, data.prepared, model, limit=limit)
    left = set(tmp_path.glob("*-features-*"))
    assert set(sizes) - left == {oldest}
    assert len(left) == 3
    with pytest.raises(DataError, match=r"--cache-limit: 0\.0 GB given, tiny-train-features-\w+ takes 0\.0 GB and"):
        features_at(tmp_path, data.prepared, spec(layers=(-1,)), limit=9)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("fields", [{}, {"input_scale": 1.5}, {"layers": (-1,)}], ids=str)
def test_planning_knows_the_size_of_features(tmp_path: Path, backbone: str, fields: dict[str, Any]) -> None:
    data, model = tiny_data(3, MIXED), spec(backbone=backbone, **fields)
    sizes = [data.prepared.shape(position) for position in range(3)]
    assert features_bytes(model, sizes) == features_at(tmp_path, data.prepared, model).vectors.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_a_gpu_keeps_the_features_and_measures_what_a_cpu_does(tmp_path: Path, head: Any) -> None:
    model, data, labels = fitted(tmp_path, head)
    gpu = World(0, 1, torch.device("cuda"))
    expected, acquire = evaluate(model, data.prepared, FACTS, ALONE)[0], AcquireSpec(pixels_per_stage=4)
    picked = pick(model, data, labels, acquire, ALONE, seed=0, stage=0)
    model.to(gpu.device)
    found = evaluate(model, data.prepared, FACTS, gpu)[0]
    assert model.features_of(data.prepared).on_device[gpu.device] is not None
    assert np.abs(found - expected).sum() <= 0.002 * expected.sum()
    again = pick(model, data, labels, acquire, gpu, seed=0, stage=0)
    assert np.mean(again.y == picked.y) > 0.9
