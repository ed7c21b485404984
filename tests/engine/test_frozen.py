"""Heads on the features of a frozen backbone: against a plain script, on one and two ranks, and in chains."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

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
from tests.support.data_folders import REAL
from tests.support.networks import confusion_by_hand, randomise_norms
from tests.support.ranks import ALONE, Ranks, chain
from tests.support.tiny_data import (
    CLASSES,
    FACTS,
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


@pytest.mark.parametrize(("head", "full"), [*((head, False) for head in HEADS), (HEADS[0], True)])
def test_a_head_learns_and_measures_what_a_plain_script_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Any, full: bool
) -> None:
    """In batches of any size."""
    model, data, labels = fitted(tmp_path, head, full=full)
    confusion, examples = evaluate(model, data.prepared, FACTS, ALONE)
    pairs = []
    for position in range(len(data.prepared)):
        with torch.no_grad():
            logits = model.head(features_at(tmp_path, data.prepared, spec(head)).maps([position]))
            logits = F.interpolate(logits, data.prepared.shape(position), mode="bilinear", align_corners=True)
        pairs.append((data.prepared.label(position), logits[0].argmax(dim=0).numpy()))
    expected = confusion_by_hand(pairs, FACTS)
    assert abs(miou(confusion) - miou(expected)) < 1e-4
    assert confusion.sum() == expected.sum()
    assert np.trace(confusion) / confusion.sum() > 1.2 / CLASSES
    assert set(examples) <= set(data.prepared.names)
    if isinstance(head, LinearSpec | KnnSpec):
        labelled = labelled_vectors(data, [model.features_of(data.prepared)], None if full else labels)
        assert loss_of(model.head, labelled) < np.log(CLASSES)
    picks = []
    for images in (1, 3):
        monkeypatch.setitem(score_module.BATCH_PIXELS, "cpu", images * 32 * 48)
        picked = pick(model, data, labels, AcquireSpec(pixels_per_stage=4), ALONE, seed=0, stage=0)
        picks.append((picked.y.tolist(), picked.x.tolist()))
        np.testing.assert_array_equal(evaluate(model, data.prepared, FACTS, ALONE)[0], confusion)
    assert picks[0] == picks[1]


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


def test_vectors_are_interpolated_as_logits_are_and_full_supervision_counts_every_pixel_once(tmp_path: Path) -> None:
    data = tiny_data(2)
    found, labels = features_at(tmp_path, data.prepared, spec()), label_some(data, [5, 3])
    few, whole = (labelled_vectors(data, [found], some) for some in (labels, None))
    full = F.interpolate(found.maps([0, 1]), (32, 48), mode="bilinear", align_corners=True)
    image = np.repeat([0, 1], [5, 3])
    expected = full[image, :, labels.y.astype(np.int64), labels.x.astype(np.int64)]
    np.testing.assert_allclose(few.vectors, expected.numpy(), atol=1e-4)
    np.testing.assert_array_equal(few.counts.argmax(axis=1), labels.label)
    np.testing.assert_array_equal(few.images, image)
    one = labelled_vectors(dataclasses.replace(data, positions=np.asarray([1])), [found], None)
    counts = [np.bincount(data.prepared.label(at).ravel(), minlength=256)[:CLASSES] for at in range(2)]
    for position in range(2):
        np.testing.assert_array_equal(whole.counts[whole.images == position].sum(axis=0), counts[position])
    np.testing.assert_array_equal(one.counts.sum(axis=0), counts[1])


@pytest.mark.parametrize("strategy", ["margin", "entropy", "least_confidence"])
@pytest.mark.parametrize("pool_fraction", [0.0, 0.9])
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


def test_bald_and_votes_draw_the_dropout_of_a_perceptron(tmp_path: Path) -> None:
    model, data, labels = fitted(tmp_path, HEADS[1])
    for strategy, vote in (("bald", "soft"), ("entropy", "hard")):
        acquire = AcquireSpec(strategy=strategy, pixels_per_stage=3, stochastic=StochasticSpec(passes=4, vote=vote))
        one, again, other = (pick(model, data, labels, acquire, ALONE, seed=seed, stage=0) for seed in (0, 0, 1))
        assert len(one) == 15
        np.testing.assert_array_equal(one.y, again.y)
        assert not np.array_equal(one.y, other.y)


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


def test_what_a_killed_process_left_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(2 * BLOCK_IMAGES)
    whole = np.array(features_at(tmp_path / "other", data.prepared, spec()).vectors)
    features_module._opened.clear()
    write, blocks = features_module._Files.write, list[int]()

    def killed_once(entry: Any, block: int, vectors: Any) -> None:
        blocks.append(block)
        if blocks == [0, 1]:
            raise KeyboardInterrupt
        write(entry, block, vectors)

    monkeypatch.setattr(features_module._Files, "write", killed_once)
    with pytest.raises(KeyboardInterrupt):
        features_at(tmp_path, data.prepared, spec())
    np.testing.assert_array_equal(features_at(tmp_path, data.prepared, spec()).vectors, whole)
    assert blocks == [0, 1, 1]


def test_features_that_cannot_be_kept_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values beyond float16, a disk that loses what is written, and a full one."""
    prepared, write = tiny_data(2).prepared, features_module._Files.write
    dark = dataclasses.replace(FACTS, std=(1e-7, 1e-7, 1e-7))
    with pytest.raises(DataError, match=r"image img_00: features overflow float16"):
        prepare_features(prepared, spec(), dark, ALONE, data_path=tmp_path, cache_path=tmp_path / "dark", seed=3)

    def forgetful(entry: Any, block: int, vectors: Any) -> None:
        write(entry, block, vectors)
        with open(entry.folder / "features.bin", "r+b") as file:
            file.write(b"other")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features_module._Files, "write", forgetful)
    with pytest.raises(DataError, match=r"data read back repeatedly differ from data written; check the disk"):
        features_at(tmp_path / "faulty", prepared, spec())
    monkeypatch.setattr(os, "posix_fallocate", full)
    told = r"No space left on device.*0\.0 GB are needed; free space, or give another folder with --cache"
    with pytest.raises(DataError, match=told):
        features_at(tmp_path / "full", prepared, spec())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_what_decides_features_is_in_their_key_and_planning_knows_their_size(tmp_path: Path, backbone: str) -> None:
    data = tiny_data(3, MIXED)
    sizes = [data.prepared.shape(position) for position in range(3)]
    fields: list[dict[str, Any]] = [{"input_scale": 1.5}, {"layers": (-2,)}]
    if backbone == "test_resnet":
        fields += [{"layers": (4, 8)}, {"feature_stride": 4}, {"output_stride": 16}]
    models = [spec(backbone=backbone, **one) for one in ({}, *fields)]
    found = [features_at(tmp_path, data.prepared, model).vectors for model in models]
    assert [one.nbytes for one in found] == [features_bytes(model, sizes) for model in models]
    assert len({one.tobytes() for one in found}) == len(list(tmp_path.glob("tiny-train-features-*"))) == len(models)
    features_at(tmp_path, data.prepared, spec(HEADS[1], backbone))  # the head decides nothing
    assert len(list(tmp_path.glob("tiny-train-features-*"))) == len(models)
    features_at(tmp_path, data.prepared, models[0], seed=4)  # random weights are one of the seed
    assert len(list(tmp_path.glob("tiny-train-features-*"))) == len(models) + 1


FROZEN = "model={backbone: test_resnet, pretrained: none, frozen: true, head: %s}", "train=null"


@pytest.mark.parametrize(
    ("head", "backbone"),
    [
        ("linear", "test_vit"),
        ("{name: mlp, hidden: [8], epochs: 2}", "test_resnet"),
        ("{name: knn, k: 3}", "test_resnet"),
        ("prototype", "test_resnet"),
    ],
)
def test_two_ranks_leave_what_one_rank_leaves_and_weights_measure_what_was_measured(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, backbone: str
) -> None:
    """From the file of a head, and in a loop that finds the fit and no evaluation. Ranks make features together."""
    normalise = "model.normalise={mean: [0.3, 0.3, 0.3], std: [1, 1, 1]}"
    experiment = tiny_experiment(FROZEN[0].replace("test_resnet", backbone) % head, FROZEN[1], normalise)
    places = [(tmp_path / name, tmp_path, tmp_path / f"cache {name}") for name in ("one", "two")]
    place, two = (place_at(*where, keep_weights="all") for where in places)
    chain(ALONE, experiment, place)
    events, _ = ranks.run(chain, experiment, two)
    assert isinstance(events[-1], ChainDone)
    before = results(place.results)
    assert len(before) == 3 + 3
    assert results(two.results) == before
    monkeypatch.setitem(datasets.DATASETS, "tiny", TinyDataset)
    stored = {}
    for path in (place.results.path / "evaluation").glob("*/confusion.npz"):
        fit_key = json.loads(path.with_name("input.json").read_text())["fit"]
        stored[fit_key] = np.load(path)["confusion"][-1]
    assert len(stored) == 3
    for fit_key, expected in stored.items():
        weights = place.results.path / "fit" / fit_key / "weights.safetensors"
        where = {"data_path": tmp_path, "cache_path": tmp_path / "cache one", "device": torch.device("cpu")}
        names, found = evaluate_checkpoint(weights, DatasetSpec(name="tiny"), "val", **where)
        assert names == FACTS.class_names
        np.testing.assert_array_equal(found, expected)
    for path in (place.results.path / "evaluation").iterdir():
        place.results.discard("evaluation", path.name)
    again = [event.trained for event in chain(ALONE, experiment, place) if isinstance(event, StageDone)]
    assert again == [False, False, False]
    assert results(place.results) == before


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
    with pytest.raises(DataError, match=r"fitted to features of a test_resnet with different weights"):
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


VITS = "vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 test_vit swin_tiny_patch4_window7_224 convnext_atto"


@pytest.mark.parametrize("backbone", VITS.split())
def test_any_network_gives_maps_of_any_size(backbone: str) -> None:
    """Those of a ViT without prefix tokens, in place: features change most where pixels change."""
    extractor = build_extractor(spec(backbone=backbone), data_path=Path("no-data"), seed=0)
    images = torch.randn(2, 3, 90, 131, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[:, :, 28:42, 56:70] += 3.0
    with torch.inference_mode():
        found = extractor(images)
        again = build_extractor(spec(backbone=backbone), data_path=Path("no-data"), seed=0)(images)
        moved = (extractor(changed) - found).norm(dim=1)
    grid = extractor.grid((90, 131))
    assert found.shape == (2, extractor.channels, *grid)
    assert torch.equal(found, again)
    assert torch.isfinite(found).all()
    assert not torch.equal(found[0], found[1])
    if "dinov2" in backbone:
        assert grid == (6, 9)
        assert [divmod(int(of_image.argmax()), 9) for of_image in moved] == [(2, 4)] * 2  # 14 pixels a patch


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224", "mobilenetv2_100"])
def test_the_weights_of_a_whole_network_are_those_of_its_features(tmp_path: Path, backbone: str) -> None:
    """The real ones where they are present."""
    torch.manual_seed(5)
    name = f"weights/{backbone}.imagenet.safetensors"
    whole = randomise_norms(timm.create_model(backbone, pretrained=False, num_classes=0)).eval()
    data_path = REAL if (REAL / name).is_file() else tmp_path
    if data_path == REAL:
        whole.load_state_dict(load_file(REAL / name), strict=False)
    else:
        (tmp_path / "weights").mkdir()
        save_file(whole.state_dict(), tmp_path / name)
    model = spec(backbone=backbone, layers=(-1,)).model_copy(update={"pretrained": "imagenet"})
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    extractor = build_extractor(model, data_path=data_path, seed=0)
    with torch.inference_mode():
        last = extractor.network(images)[-1]
        expected = whole.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[-1]
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


def test_features_used_longest_ago_make_room(tmp_path: Path) -> None:
    data = tiny_data(3)
    for age, scale in enumerate([1.0, 1.5, 2.0]):
        features_at(tmp_path, data.prepared, spec(input_scale=scale))
        (new,) = [path for path in tmp_path.glob("*-features-*") if path.stat().st_mtime > 2e8]
        os.utime(new, (1e8 + age,) * 2)
    sizes = {path: (path / "features.bin").stat().st_size for path in tmp_path.glob("*-features-*")}
    oldest = min(sizes, key=lambda path: path.stat().st_mtime)
    features_module._opened.clear()
    model = spec(input_scale=2.5)
    limit = sum(sizes.values()) + features_bytes(model, [(32, 48)] * 3) - 1
    features_at(tmp_path, data.prepared, model, limit=limit)
    left = set(tmp_path.glob("*-features-*"))
    assert set(sizes) - left == {oldest}
    assert len(left) == 3
    with pytest.raises(DataError, match=r"--cache-limit: 0\.0 GB is too small, as tiny-train-features-\w+ needs"):
        features_at(tmp_path, data.prepared, spec(layers=(-1,)), limit=9)


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
