"""Contracts of strategies, heads, oracles, data sets and formats: one test class per kind, to inherit from.

>>> from pixelpick_ray.testing import StrategyContract
>>> class TestMine(StrategyContract):
...     name = "mine"  # as in an experiment file: an entry point's name, or file:PATH.py:NAME

pytest runs the tests of the class. Paths after ``file:`` are relative to the working directory.
"""

import copy
import io
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pixelpick_ray.active.acquisition import check_strategy, score_passes
from pixelpick_ray.active.oracle import OracleRequest, answer
from pixelpick_ray.annotate.exchange import AskedImage, Exchanged, ExchangedPoint, export, read
from pixelpick_ray.config import parts
from pixelpick_ray.config.model import ModelSpec, with_head
from pixelpick_ray.config.trial import (
    AcquireSpec,
    DatasetSpec,
    ErringSpec,
    ExternalOracleSpec,
    GroundTruthSpec,
    SizeSpec,
    StochasticSpec,
)
from pixelpick_ray.data.cache import prepare
from pixelpick_ray.data.dataset import Dataset
from pixelpick_ray.data.datasets import open_dataset
from pixelpick_ray.data.questions import Questions
from pixelpick_ray.errors import DataError, SpecError
from pixelpick_ray.models.segmentation import build_model

HERE = Path()


class StrategyContract:
    """A strategy that scores pixels with the network: one finite score per pixel, whatever the batch."""

    name: ClassVar[str]

    def scores(self, logits: Tensor) -> Tensor:
        """Return scores (N, H, W) of logits (N, C, H, W), of three equal passes if the strategy compares passes."""
        acquire = AcquireSpec(strategy=parts.resolved("strategy", self.name, HERE))
        try:
            check_strategy(acquire)
        except SpecError:
            acquire = acquire.model_copy(update={"stochastic": StochasticSpec(passes=3)})
            check_strategy(acquire)
        return score_passes(acquire, [logits.clone() for _ in range(3 if acquire.stochastic else 1)])

    def logits(self, scale: float = 3.0) -> Tensor:
        """Return random logits (4, 5, 6, 7)."""
        return scale * torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))

    def test_every_pixel_has_a_finite_score(self) -> None:
        for logits in (self.logits(), self.logits(1e4), torch.zeros(1, 2, 3, 4), self.logits(1e-4)):
            scores = self.scores(logits)
            assert scores.shape == (len(logits), *logits.shape[2:])
            assert scores.isfinite().all()

    def test_scores_are_the_same_every_time(self) -> None:
        assert torch.equal(self.scores(self.logits()), self.scores(self.logits()))

    def test_an_image_has_the_same_scores_in_every_batch(self) -> None:
        """Otherwise picks would depend on batch sizes and the number of ranks."""
        logits = self.logits()
        alone = torch.cat([self.scores(logits[index : index + 1]) for index in range(len(logits))])
        assert torch.allclose(self.scores(logits), alone, rtol=1e-5, atol=1e-6)

    def test_logits_may_be_shifted(self) -> None:
        """Softmax is invariant to a constant added to all classes of a pixel."""
        logits = self.logits()
        assert torch.allclose(self.scores(logits), self.scores(logits + 5.0), rtol=1e-3, atol=1e-4)


class HeadContract:
    """A head: trainable logits from a backbone's features, which do not depend on the batch in evaluation mode."""

    name: ClassVar[str]
    backbone: ClassVar[str] = "test_resnet"
    options: ClassVar[dict[str, Any]] = {}  # further fields of `model`
    classes: ClassVar[int] = 5

    def model(self, seed: int = 0) -> nn.Module:
        """Build the whole network, not pretrained."""
        name = parts.resolved("head", self.name, HERE)
        fields = {"architecture": name, "backbone": self.backbone, "pretrained": "none"} | self.options
        spec = ModelSpec(**with_head(fields))
        return build_model(spec, num_classes=self.classes, data_path=HERE, seed=seed, stage=0)

    def images(self, height: int = 32, width: int = 48) -> Tensor:
        """Return random images (3, 3, height, width)."""
        return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))

    def test_there_are_logits_of_every_class_at_every_size(self) -> None:
        model = self.model().eval()
        for height, width in ((32, 48), (40, 56), (64, 32)):
            logits = model(self.images(height, width))
            assert logits.shape[:2] == (3, self.classes)
            assert logits.shape[2] <= height
            assert logits.shape[3] <= width
            assert logits.isfinite().all()

    def test_the_seed_decides_the_weights(self) -> None:
        one, same, other = (self.model(seed).state_dict() for seed in (0, 0, 1))
        assert one.keys() == same.keys()
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    def test_an_image_has_the_same_logits_in_every_batch(self) -> None:
        model, images = self.model().eval(), self.images()
        alone = torch.cat([model(images[index : index + 1]) for index in range(len(images))])
        assert torch.allclose(model(images), alone, rtol=1e-3, atol=1e-4)

    def test_a_step_changes_the_head_and_lowers_the_loss(self) -> None:
        torch.manual_seed(0)
        model, images = self.model().train(), self.images()
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(20):
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        assert np.mean(losses[-3:]) < losses[0]
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any(not name.startswith("backbone.") for name in changed)


class OracleContract:
    """An oracle: a class for every question, and always the same one."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    class_names: ClassVar[tuple[str, ...]] = ("sky", "road", "car", "tree")

    def spec(self) -> Any:
        """Return the oracle as an experiment specifies it."""
        built_in = {"ground_truth": GroundTruthSpec, "erring": ErringSpec}
        if self.name in built_in:
            return built_in[self.name](name=self.name, **self.options)
        return ExternalOracleSpec(name=parts.resolved("oracle", self.name, HERE), options=self.options)

    def request(self, seed: int = 0) -> OracleRequest:
        """Return a request with 60 random questions on two images."""
        rng = np.random.default_rng(0)
        questions = Questions.of(
            names=np.repeat(["a", "b"], 30).tolist(),
            shapes=[(20, 30)] * 60,
            y=np.tile(np.arange(15).repeat(2), 2),
            x=np.tile([3, 17], 30),
            truth=rng.integers(0, len(self.class_names), 60),
            predicted=rng.integers(0, len(self.class_names), 60),
            entropy=rng.random(60),
            distance=rng.random(60),
            stage=0,
        )
        return OracleRequest(questions, self.class_names, seed)

    def test_every_question_has_a_class(self) -> None:
        said = answer(self.spec(), self.request())
        assert said.shape == (60,)
        assert ((said >= 0) & (said < len(self.class_names))).all()

    def test_the_same_question_has_the_same_answer(self) -> None:
        assert np.array_equal(answer(self.spec(), self.request()), answer(self.spec(), self.request()))


class DatasetContract:
    """A data set: images and label maps whose names, sizes and classes agree with its facts."""

    name: ClassVar[str]
    fields: ClassVar[dict[str, Any]] = {}  # further fields of `dataset`
    data_path: ClassVar[Path] = Path("data")
    most_images: ClassVar[int] = 5  # read per split

    def dataset(self) -> Dataset:
        """Open the data set."""
        return open_dataset(DatasetSpec(name=self.name, **self.fields), self.data_path)

    def test_the_facts_fit_together(self) -> None:
        facts = self.dataset().facts
        assert len(set(facts.class_names)) == facts.num_classes == len(facts.palette)
        assert facts.train_split in facts.splits
        assert not 0 <= facts.void_index < facts.num_classes
        assert all(0 <= value <= 1 for value in facts.mean)
        assert all(0 < value <= 1 for value in facts.std)

    def test_names_are_sorted_and_of_one_split(self) -> None:
        dataset = self.dataset()
        names = [dataset.names(split) for split in dataset.facts.splits]
        assert all(one == tuple(sorted(set(one))) for one in names)

    def test_images_and_labels_are_what_the_facts_say(self) -> None:
        dataset = self.dataset()
        known = {*range(dataset.facts.num_classes), dataset.facts.void_index, dataset.facts.unlabelled_index}
        for split in dataset.facts.splits:
            for name in dataset.names(split)[: self.most_images]:
                image, label = dataset.read(split, name)
                assert image.dtype == label.dtype == np.uint8
                assert image.shape == (*label.shape, 3)
                assert dataset.native_size(split, name) == label.shape
                assert set(np.unique(label).tolist()) <= known

    def test_the_signature_is_json_and_stays(self) -> None:
        one, same = self.dataset(), self.dataset()
        for split in one.facts.splits:
            assert json.dumps(one.signature(split)) == json.dumps(same.signature(split))

    def test_it_can_be_prepared_twice_alike(self) -> None:
        dataset, size = self.dataset(), SizeSpec(long_side=32)
        split = dataset.facts.train_split
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            first, second = (prepare(dataset, split, size, Path(folder)) for folder in (one, two))
            assert first.fingerprint == second.fingerprint
            assert np.array_equal(first.labels, second.labels)


class FormatContract:
    """A file format: what is written can be read back, and other files are rejected, not misread."""

    name: ClassVar[str]
    loses: ClassVar[tuple[str, ...]] = ("time", "id", "annotator")  # fields of answers that the format cannot store
    class_names: ClassVar[tuple[str, ...]] = ("sky", "a road, wet", "Straße <1> & more")

    def points(self) -> tuple[ExchangedPoint, ...]:
        """Return three answers and an open question on one image."""
        said = [(0, 0, "sky"), (3, 39, "a road, wet"), (31, 7, "Straße <1> & more")]
        answers = [ExchangedPoint(image="a_1", y=y, x=x, kind="class", label=label) for y, x, label in said]
        return (*answers, ExchangedPoint(image="a_1", y=31, x=39))

    def images(self) -> tuple[AskedImage, ...]:
        """Return the image that the points are on."""
        return (AskedImage("a_1", 32, 40, lambda: (32, 40), "a_1.png"),)

    def test_what_is_written_is_read_back(self) -> None:
        palette = ((0, 0, 0), (255, 0, 0), (1, 2, 3))
        content = export(Exchanged(self.class_names, palette, self.images(), self.points()), self.name)
        found = read(content, self.name, class_names=self.class_names, images=self.images())
        answered = [(point.place, point.label) for point in found if point.kind]
        assert answered == [(point.place, point.label) for point in self.points() if point.kind]

    def test_other_files_are_refused(self) -> None:
        for content in (b"", b"{", b"\x00\xff" * 20, io.BytesIO(b"a,b\n1,2\n").getvalue()):
            try:
                found = read(content, self.name, class_names=self.class_names, images=self.images())
            except DataError:
                continue
            assert not found
