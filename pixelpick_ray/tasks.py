"""Tasks: what each stored result depends on, and how it is read.

A task is only an identity: it needs neither torch nor a disk and does not know how its result is computed.

>>> fit = Fit(trial, source, evaluate, stage=0, labels=labels)
>>> fit.key, [evaluation.key for evaluation in fit.evaluations], Pick(fit).key
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from pixelpick_ray.active.acquisition import needs_model, strategy_version
from pixelpick_ray.active.metrics import Counts
from pixelpick_ray.active.oracle import oracle_version
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.keys import FEATURES_VERSION, Source, versioned
from pixelpick_ray.config.networks import head_version
from pixelpick_ray.config.trial import Budget, ErringSpec, EvaluateSpec, HumanSpec, SizeSpec, Trial
from pixelpick_ray.data.labels import LabelledPixels
from pixelpick_ray.data.questions import Questions

T = TypeVar("T")
PIXELS, STATISTICS, ASKED = "pixels.npz", "statistics.json", "questions.json"  # files of a pick
QUESTIONS = "questions.npz"
TRAINING = "training.json"
CONFUSION, PREDICTIONS = "confusion.npz", "predictions"


def prediction_file(name: str) -> str:
    """Return the file of an evaluation that holds the prediction for an image, whose name may contain folders."""
    return f"{PREDICTIONS}/{PurePosixPath(name).with_suffix('').as_posix().replace('/', '%2F')}.png"


class Labels(Protocol):
    """Labelled pixels, or a placeholder for pixels not known yet."""

    def digest(self) -> str:
        """Return the identity of the labels."""

    def add(self, other: Any) -> Self:
        """Return these labels joined with those of a further pick."""


class Task(ABC, Generic[T]):
    """One result: its key is a hash of `inputs`, and `read` builds its value from the contents of `files`.

    Every rank of a trial needs the value if `for_all_ranks`, otherwise only the first.
    """

    kind: ClassVar[str]
    for_all_ranks: ClassVar[bool] = False

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON-ready values."""

    @cached_property
    def key(self) -> str:
        """The key under which the result is stored."""
        return digest(self.inputs)

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """Names of the files that the value is read from."""

    @abstractmethod
    def read(self, files: Mapping[str, bytes]) -> T:
        """Build the value from file contents by name."""

    @property
    def model_of(self) -> "Fit | None":
        """The fit whose model computes the result, if any."""
        return None

    @property
    def weights_help(self) -> bool:
        """Whether that fit's stored weights suffice to compute the result; otherwise only training yields it."""
        return True

    @property
    def by_training(self) -> tuple["Task[Any]", ...]:
        """Results that only computing this one can yield; it is incomplete without them."""
        return ()


@dataclass(frozen=True)
class Trained:
    """Figures of a training: the loss of each epoch, and seconds, including evaluation on the way."""

    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Fit(Task[Trained]):
    """One training. Strategy, budget, evaluation and ranks are not in its key; `labels` is None if fully supervised."""

    kind = "fit"
    trial: Trial
    source: Source
    evaluate: EvaluateSpec
    stage: int
    labels: Labels | None

    @cached_property
    def inputs(self) -> dict[str, Any]:
        trial = self.trial
        fields: dict[str, Any] = {} if trial.training is None else {"train": trial.training.as_input()}
        if trial.training is None:
            fields["features"] = FEATURES_VERSION
        if not trial.model.is_deterministic:
            fields |= {"seed": trial.seed, "stage": self.stage}
        oracle = trial.oracle
        if isinstance(oracle, ErringSpec) and trial.redraws and (self.stage > 0 or oracle.starts == "first"):
            fields["oracle"] = _oracle(trial)
        labels = "full" if self.labels is None else self.labels.digest()
        return versioned("fit", data=_data(trial, self.source), model=self._model, **fields, labels=labels)

    @property
    def _model(self) -> dict[str, Any]:
        """The network's part of the key: weights and normalisation by value, not by name."""
        model, source = self.trial.model, self.source
        fields = model.as_input() | {"weights_digest": source.weights_digest}
        fields.pop("normalise", None)
        if source.normalise is not None:
            fields["normalise"] = source.normalise.as_input()
        return fields | _raised(head_version(model.architecture))

    @property
    def files(self) -> tuple[str, ...]:
        return TRAINING, "provenance.json"

    def read(self, files: Mapping[str, bytes]) -> Trained:
        losses = json.loads(files[TRAINING])["losses"]
        return Trained(tuple(losses), json.loads(files["provenance.json"])["seconds"])

    @property
    def is_last(self) -> bool:
        """Whether this is the last stage, after which nothing is picked."""
        return self.stage + 1 == self.trial.num_stages

    @property
    def budget(self) -> Budget:
        """Labelled pixels per image, or "full"."""
        return "full" if self.labels is None else self.trial.budget_of(self.stage)

    @cached_property
    def evaluations(self) -> tuple["Evaluate", ...]:
        """Evaluations of the fit, in the experiment's order."""
        return tuple(Evaluate(self, split) for split in self.evaluate.splits)

    @property
    def by_training(self) -> tuple["Evaluate", ...]:
        return tuple(one for one in self.evaluations if not one.weights_help)


@dataclass(frozen=True)
class Evaluate(Task[dict[int, Counts]]):
    """Confusion matrices (C, C) of a fit on a split, by epoch; `split` is the experiment's name for it."""

    kind = "evaluation"
    fit: Fit
    split: str

    @cached_property
    def inputs(self) -> dict[str, Any]:
        evaluate, name = self.fit.evaluate, self.fit.evaluate.split_of(self.split)
        size = evaluation_size(evaluate, self.fit.trial, self.split)
        data = {"fingerprint": self.fit.source.fingerprints[name], "size": size.as_input()}
        return versioned("evaluation", fit=self.fit.key, split=name, data=data, when=evaluate.when)

    @property
    def files(self) -> tuple[str, ...]:
        return (CONFUSION,)

    def read(self, files: Mapping[str, bytes]) -> dict[int, Counts]:
        with np.load(io.BytesIO(files[CONFUSION]), allow_pickle=False) as file:
            return dict(zip(file["epochs"].tolist(), file["confusion"], strict=True))

    @property
    def model_of(self) -> Fit:
        return self.fit

    @property
    def weights_help(self) -> bool:
        return self.fit.evaluate.when == "last"


@dataclass(frozen=True)
class Picked:
    """New labelled pixels; `questions` are the keys of the questions put to people for them, in order."""

    pixels: LabelledPixels
    questions: tuple[str, ...] = ()


class PixelsTask(Task[Picked]):
    """New labelled pixels, the first ones or those after a fit; `stage` is the first to train on them."""

    kind = "pick"
    for_all_ranks = True
    trial: Trial
    stage: int

    @property
    def budget(self) -> int:
        """Labelled pixels per image, these included."""
        return self.trial.budget_of(self.stage)

    @property
    def files(self) -> tuple[str, ...]:
        return (PIXELS, ASKED) if isinstance(self.trial.oracle, HumanSpec) else (PIXELS,)

    def read(self, files: Mapping[str, bytes]) -> Picked:
        questions = json.loads(files[ASKED]) if ASKED in files else ()
        return Picked(LabelledPixels.read(io.BytesIO(files[PIXELS])), tuple(questions))


@dataclass(frozen=True)
class FirstPixels(PixelsTask):
    """The first pixels, drawn at random and shared by backbones and strategies."""

    trial: Trial
    source: Source
    stage = 0

    @cached_property
    def inputs(self) -> dict[str, Any]:
        trial = self.trial
        return versioned(
            "initial",
            data=_data(trial, self.source),
            initial_pixels=trial.acquire.initial_pixels,
            oracle=_oracle(trial),
            seed=trial.seed,
        )


@dataclass(frozen=True)
class Pick(PixelsTask):
    """The next pixels after a fit: their choice and their labels."""

    fit: Fit

    @property
    def trial(self) -> Trial:  # type: ignore[override]
        """The trial of the fit."""
        return self.fit.trial

    @property
    def stage(self) -> int:  # type: ignore[override]
        """The stage after the fit's."""
        return self.fit.stage + 1

    @cached_property
    def inputs(self) -> dict[str, Any]:
        trial = self.fit.trial
        acquire = trial.acquire.as_input()
        del acquire["initial_pixels"]  # already in the labels of the fit
        acquire |= _raised(strategy_version(trial.acquire.strategy))
        asked = {"acquire": acquire, "oracle": _oracle(trial)}
        return versioned("pick", fit=self.fit.key, **asked, seed=trial.seed, stage=self.fit.stage)

    @property
    def model_of(self) -> Fit | None:
        return self.fit if needs_model(self.fit.trial.acquire.strategy) else None


@dataclass(frozen=True)
class Ask(Task[Questions]):
    """A round of questions put to people to make `pixels`.

    `answered` lists the keys of earlier rounds, each with the digest of the labels that people gave; a further round
    replaces pixels that got no class.
    """

    kind = "question"
    for_all_ranks = True
    pixels: PixelsTask
    answered: tuple[tuple[str, str], ...] = ()

    @cached_property
    def inputs(self) -> dict[str, Any]:
        return versioned("question", pick=self.pixels.key, answered=[list(pair) for pair in self.answered])

    @property
    def files(self) -> tuple[str, ...]:
        return (QUESTIONS,)

    def read(self, files: Mapping[str, bytes]) -> Questions:
        return Questions.read(io.BytesIO(files[QUESTIONS]))

    @property
    def model_of(self) -> Fit | None:
        return self.pixels.model_of


@dataclass(frozen=True)
class Describe(Task[None]):
    """Description of a prepared split for reports; `images` are the selected ones, None for all."""

    kind = "split"
    size: SizeSpec
    fingerprint: str
    images: tuple[str, ...] | None

    @cached_property
    def inputs(self) -> dict[str, Any]:
        images = None if self.images is None else list(self.images)
        size = self.size.size_spec().as_input()
        return versioned("split", fingerprint=self.fingerprint, size=size, images=images)

    @property
    def files(self) -> tuple[str, ...]:
        return ()

    def read(self, files: Mapping[str, bytes]) -> None:
        """Return None: only reports read it (`data/description.py`)."""


def answers_key(trial: Trial, identity: list[Any]) -> str:
    """Return the key of people's answers, for a training data set of this `identity`.

    Also in the key: the images' path and preparation, and how people are asked. All chains that ask about these images
    share it, whatever their seed, network or strategy. Image contents are not in it, so that images may be added; they
    are compared when people are asked about them.
    """
    suggestions = isinstance(trial.oracle, HumanSpec) and trial.oracle.suggestions
    size, path = trial.dataset.size_spec().as_input(), trial.dataset.path
    return digest(versioned("book", dataset=identity, path=path, size=size, suggestions=suggestions))


def evaluation_size(evaluate: EvaluateSpec, trial: Trial, split: str) -> SizeSpec:
    """Return the size at which a split is evaluated: its own, or the training size if it gives none."""
    own = evaluate.splits[split].size_spec()
    return trial.dataset.size_spec() if own == SizeSpec() else own


def _raised(version: int) -> dict[str, int]:
    """Key fields for a part's version: none for 1, so that keys from before parts had versions remain valid."""
    return {} if version == 1 else {"version": version}


def _oracle(trial: Trial) -> dict[str, Any]:
    return trial.oracle.as_input() | _raised(oracle_version(trial.oracle.name))


def _data(trial: Trial, source: Source) -> dict[str, Any]:
    fields = trial.dataset.as_input()
    fields.pop("path", None)  # a location; the contents are in the fingerprint
    return fields | {"fingerprint": source.fingerprints[source.training_split]}
