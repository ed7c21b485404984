"""Trials, the points of the grid: every setting that affects results, and what is evaluated."""

import unicodedata
from functools import cached_property
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from pixelpick_ray.config import parts
from pixelpick_ray.config.canonical import digest
from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.spec import Count, Fraction, NonNegative, Positive, PositiveFraction, Spec

Budget = Annotated[int, Field(ge=1)] | Literal["full"]


class SizeSpec(Spec):
    """The size that images are resized to: at most one of the three fields; without any, the native size.

    ``size`` is [height, width] in pixels, ``scale`` a factor, ``long_side`` the longer side in pixels.
    """

    size: tuple[Count, Count] | None = None
    scale: Positive | None = None
    long_side: Count | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        given = [name for name in ("size", "scale", "long_side") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are mutually exclusive; keep one of size, scale, long_side")
        return self

    def size_spec(self) -> "SizeSpec":
        """The size fields alone."""
        return SizeSpec(size=self.size, scale=self.scale, long_side=self.long_side)

    def prepared_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of this native size is resized to."""
        if self.size is not None:
            return self.size
        factor = self.scale if self.scale is not None else 1.0
        if self.long_side is not None:
            factor = self.long_side / max(height, width)
        return max(1, int(height * factor + 1e-9)), max(1, int(width * factor + 1e-9))


class DatasetSpec(SizeSpec):
    """The training images: data set, prepared size, and their number (a nested random subset drawn by seed).

    ``split`` is the split to train on, by default the data set's own training split. ``path`` is for ``folder``, the
    user's own images: the folder inside the data folder that holds ``dataset.yaml``. ``held_out`` is the fraction of
    the training images, the same for every seed, that is never trained on and forms an extra split, ``held_out``;
    ``images`` are drawn from the rest.
    """

    name: str
    path: str | None = None
    split: str | None = None
    images: Count | None = None
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _path_stays_inside(self) -> Self:
        if self.path is not None and escapes(self.path):
            raise ValueError(f"path: {self.path!r} leaves the data folder; give a path inside it, e.g. path: leaves")
        return self


def escapes(path: str) -> bool:
    """Whether a path leaves the folder it is relative to, or is invalid; symbolic links are not followed."""
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not is_line(path)


def is_line(text: str) -> bool:
    """Whether a text is a single line that UTF-8 can encode: no control characters or lone surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


class AdamSpec(Spec):
    """Adam with L2 weight decay, betas (0.9, 0.999), eps 1e-8.

    The backbone's learning rate is ``lr`` times ``backbone_lr_factor``; with ``layer_decay``, each of its layers has
    that multiple of the rate of the layer above (Clark et al. 2020, section 3.2).
    """

    name: Literal["adam"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    layer_decay: PositiveFraction | None = None
    weight_decay: NonNegative = 0.0


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum and L2 weight decay; backbone learning rates as for ``adam``."""

    name: Literal["sgd"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    layer_decay: PositiveFraction | None = None
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9


class ConstantSpec(Spec):
    """A constant learning rate."""

    name: Literal["constant"] = "constant"


class MultistepSpec(Spec):
    """A learning rate multiplied by ``gamma`` at each of the ``milestones`` (numbers of finished epochs)."""

    name: Literal["multistep"]
    milestones: tuple[Count, ...]
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: must ascend without repeats; got {list(self.milestones)}")
        return self


class PolySpec(Spec):
    """A learning rate that decays as (1 - t/N)^power over the N iterations of a stage."""

    name: Literal["poly"]
    power: Positive = 0.9


class JitterSpec(Spec):
    """Colour jitter in random order, with strengths as in torchvision's ColorJitter."""

    probability: Fraction = 0.8
    brightness: NonNegative = 0.8
    contrast: NonNegative = 0.8
    saturation: NonNegative = 0.8
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2


class BlurSpec(Spec):
    """Gaussian blur with ``sigma`` in pixels; the kernel size is int(kernel_fraction * short side // 2 * 2 + 1)."""

    probability: Fraction = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    kernel_fraction: Fraction = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma: must be [smallest, largest]; got {list(self.sigma)}")
        return self


class AugmentSpec(Spec):
    """Augmentation, in this order: scale, pad and crop, horizontal flip, colour jitter, grayscale, blur.

    ``hflip`` and ``grayscale`` are probabilities; ``crop_size`` is [height, width] in pixels.
    """

    scale: tuple[Positive, Positive] = (0.5, 2.0)
    crop_size: tuple[Count, Count] | None = None
    hflip: Fraction = 0.5
    jitter: JitterSpec | None = None
    grayscale: Fraction = 0.0
    blur: BlurSpec | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: must be [smallest, largest]; got {list(self.scale)}")
        return self


# Training options without effect in full supervision; these values are left out of keys.
SPARSE_ONLY: dict[str, Any] = {"decoder": "dense", "exact_labels": True}


class TrainSpec(Spec):
    """How one stage is trained; ``batch_size`` is global, over all ranks.

    With ``decoder: sparse``, the decoder of DeepLabv3+ runs only around the labelled pixels. It computes the same
    function, except that its batch norm's training statistics are over these neighbourhoods, not whole images.
    Evaluation, acquisition and full supervision are always dense.

    With ``exact_labels``, a labelled pixel keeps its exact position under augmentation, usually between pixels, and
    counts once. Without, label maps are resized with nearest neighbour, as in the original 2021 code: enlarging
    duplicates labels, shrinking loses some.
    """

    epochs: Count
    batch_size: Count = 4
    optimizer: Annotated[AdamSpec | SgdSpec, Field(discriminator="name")]
    schedule: Annotated[ConstantSpec | MultistepSpec | PolySpec, Field(discriminator="name")] = ConstantSpec()
    augment: AugmentSpec | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    decoder: Literal["dense", "sparse"] = "dense"
    exact_labels: bool = True

    @model_serializer(mode="wrap")
    def _defaults_are_absent(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Omit defaults of options that are newer than existing keys."""
        fields: dict[str, Any] = serialise(self)
        absent = SPARSE_ONLY if info.exclude_none else {}
        return {name: value for name, value in fields.items() if name not in absent or value != absent[name]}


class StochasticSpec(Spec):
    """Monte Carlo dropout (Gal and Ghahramani 2016): number of stochastic passes, and how they are combined.

    ``soft`` averages the passes' scores; ``hard`` scores the fractions of passes that predict each class.
    """

    passes: Annotated[int, Field(ge=2)] = 20
    vote: Literal["soft", "hard"] = "soft"


class AcquireSpec(Spec):
    """How pixels are selected for labelling.

    With ``pool: score``, each image's pool is its ``pool_fraction`` of highest-scoring pixels, and the picks are drawn
    from it at random; with ``pool: chance``, the pool is drawn at random and the picks are its highest-scoring pixels.
    ``pool_fraction: 0`` picks the highest-scoring pixels directly. Numbers of pixels are per image.
    """

    strategy: str = "margin"
    initial_pixels: Count = 10
    pixels_per_stage: Count = 10
    pool_fraction: Fraction = 0.05
    pool: Literal["score", "chance"] = "score"
    stochastic: StochasticSpec | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _a_pool_by_chance_has_a_size(self) -> Self:
        if self.pool == "chance" and self.pool_fraction == 0:
            raise ValueError("pool_fraction: pool: chance needs a value above 0, e.g. 0.05")
        return self


class GroundTruthSpec(Spec):
    """Answers from the data set's labels."""

    name: Literal["ground_truth"] = "ground_truth"


class ErringSpec(Spec):
    """A simulated annotator who errs at ``rate``, uniformly among the other classes, or by a confusion matrix.

    ``confusion[a][b]`` is the probability that a pixel of class a is labelled b, both by name; missing entries are 0,
    and the remaining probability of each class goes to the correct answer. A pixel always gets the same answer,
    whenever and by whichever strategy it is queried.

    With ``from: queries``, the initial random pixels are labelled correctly. With ``redrawn``, the set of mislabelled
    pixels is still fixed, but their wrong class is drawn anew in each training step, as in the original 2021 code; the
    stored labels are then the true ones.
    """

    name: Literal["erring"]
    rate: Fraction | None = None
    confusion: dict[str, dict[str, Fraction]] | None = None
    redrawn: bool = False
    starts: Literal["first", "queries"] = Field("first", alias="from")

    @model_serializer(mode="wrap")
    def _defaults_are_absent(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Omit defaults of options that are newer than existing keys, and rename `starts`: `from` is a keyword."""
        fields: dict[str, Any] = serialise(self)
        fields["from"] = fields.pop("starts", fields.get("from"))
        absent = {"redrawn": False, "from": "first"} if info.exclude_none else {}
        return {name: value for name, value in fields.items() if name not in absent or value != absent[name]}

    @model_validator(mode="after")
    def _one_way_to_err(self) -> Self:
        if (self.rate is None) == (self.confusion is None):
            raise ValueError("rate: give exactly one of rate and confusion")
        for truth, said in (self.confusion or {}).items():
            if truth in said or sum(said.values()) > 1 + 1e-9:
                raise ValueError(
                    f"confusion: {truth}: should be other classes with probabilities that sum to at most 1; got {said}"
                )
        return self


class HumanSpec(Spec):
    """Answers from people, on the page of the command `annotate`; chains wait for them.

    With ``suggestions``, the page proposes the predicted class, which is faster but biases the answers; they are kept
    apart from answers without suggestions. With ``replace``, a pixel without an answer, because it is of no class or
    cannot be recognised, is replaced by another pixel of its image.
    """

    name: Literal["human"]
    suggestions: bool = False
    replace: bool = False


class ExternalOracleSpec(Spec):
    """An oracle from a file or an installed package, and the options passed to it."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _oracle_tag(value: Any) -> str | None:
    if not isinstance(value, (dict, Spec)):
        return "ground_truth"  # its validation reports the problem
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "external" if isinstance(name, str) and parts.is_external("oracle", name) else name


OracleSpec = Annotated[
    Annotated[GroundTruthSpec, Tag("ground_truth")]
    | Annotated[ErringSpec, Tag("erring")]
    | Annotated[HumanSpec, Tag("human")]
    | Annotated[ExternalOracleSpec, Tag("external")],
    Discriminator(_oracle_tag),
]


class EvaluatedSpec(SizeSpec):
    """An evaluated split and its image size; ``split`` is only needed to evaluate a split under several names."""

    split: str | None = None


class EvaluateSpec(Spec):
    """The evaluated splits and their sizes, when they are evaluated, and which one is reported."""

    splits: dict[str, EvaluatedSpec]
    when: Literal["last", "every_epoch"] = "last"
    report: str

    @model_validator(mode="after")
    def _reported_is_evaluated(self) -> Self:
        if not self.splits:
            raise ValueError("splits: none given; give at least one, e.g. splits: {val: {}}")
        if self.report not in self.splits:
            evaluated = ", ".join(sorted(self.splits))
            raise ValueError(f"report: should be one of the evaluated splits ({evaluated}); got {self.report!r}")
        return self

    def split_of(self, name: str) -> str:
        """The data set's split evaluated under a name."""
        return self.splits[name].split or name

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of evaluated splits other than the reported one, on which epochs may be selected."""
        return tuple(name for name in self.splits if self.split_of(name) != self.split_of(self.report))


class Trial(Spec):
    """One point of the grid: every setting that affects its results."""

    dataset: DatasetSpec
    model: ModelSpec
    train: TrainSpec | None = None
    acquire: AcquireSpec = AcquireSpec()
    oracle: OracleSpec = GroundTruthSpec()
    seed: Annotated[int, Field(ge=0)]
    budget: Budget

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_budget()
        train = self.training
        if train is None and self.model.fitted_head is None:
            raise ValueError(f"train: is required, because {self.model.architecture} is trained by gradient descent")
        if self.redraws and self.model.fitted_head is not None:
            raise ValueError(
                f"oracle.redrawn: does not apply to {self.model.architecture} on frozen features, which is fitted to "
                "fixed labels; leave it out"
            )
        if self.budget == "full" and self.model.fitted_head is not None and self.model.fitted_head.keeps_vectors:
            raise ValueError(
                f"budget: full supervision has too many labels for {self.model.architecture}, which compares with "
                "every labelled pixel; use another head, such as linear, or leave full out"
            )
        if train is not None and train.decoder == "sparse" and self.model.architecture != "deeplabv3plus":
            raise ValueError(
                f"train.decoder: sparse is not supported for {self.model.architecture}, whose group norm needs whole "
                "images; leave it out, or use architecture deeplabv3plus"
            )
        stochastic = self.acquire.stochastic is not None and self.budget != "full"
        if stochastic and not self.model.has_dropout:
            raise ValueError(
                "acquire.stochastic: needs dropout, without which all passes are equal; set model.dropout or "
                "model.feature_dropout, e.g. 0.2"
            )
        if train is not None and isinstance(train.schedule, MultistepSpec) and train.schedule.milestones:
            last = train.schedule.milestones[-1]
            if last >= train.epochs:
                raise ValueError(
                    f"train.schedule.milestones: {last} is never reached in {train.epochs} epochs; "
                    "lower it or use schedule {name: constant}"
                )
        return self

    def _check_budget(self) -> None:
        if self.budget == "full":
            return
        first, step = self.acquire.initial_pixels, self.acquire.pixels_per_stage
        if self.budget < first or (self.budget - first) % step:
            below = first + max(0, (self.budget - first) // step) * step
            raise ValueError(
                f"budget: no stage has exactly {self.budget}: they start at {first} (initial_pixels) and add {step} "
                f"(pixels_per_stage); use {below} or {below + step}"
            )

    @property
    def external_parts(self) -> tuple[tuple[str, str], ...]:
        """(kind, resolved name) of the external parts."""
        tree: Any = self
        named = [(kind, attrgetter(path)(tree)) for path, kind in parts.FIELDS.items()]
        return tuple((kind, name) for kind, name in named if "@" in name)

    def as_named(self) -> dict[str, Any]:
        """JSON-ready fields with external parts named as in the experiment file, without the identity of their code."""
        tree = self.as_input()
        for path in parts.FIELDS:
            spec, _, field = path.partition(".")
            tree[spec][field] = tree[spec][field].partition("@")[0]
        return tree

    @property
    def training(self) -> TrainSpec | None:
        """The effective `train`: no sparse-label options if fully supervised, None for heads on frozen features."""
        if self.model.fitted_head is not None or self.train is None:
            return None
        return self.train.model_copy(update=SPARSE_ONLY) if self.budget == "full" else self.train

    @property
    def epochs(self) -> int:
        """Epochs of a stage; 1 for a head on frozen features."""
        return 1 if self.training is None else self.training.epochs

    @cached_property
    def chain_id(self) -> str:
        """Digest of the chain that the trial is a prefix of: all but the budget and, in full supervision, `acquire`."""
        fields = self.as_input()
        if self.training is None:
            fields.pop("train", None)
        else:
            fields["train"] = self.training.as_input()
        full = fields.pop("budget") == "full"
        if full:
            del fields["acquire"]
        return digest({**fields, "full": full})

    @property
    def num_stages(self) -> int:
        """Number of stages up to the budget; 1 in full supervision."""
        if self.budget == "full":
            return 1
        return 1 + (self.budget - self.acquire.initial_pixels) // self.acquire.pixels_per_stage

    @property
    def is_fully_supervised(self) -> bool:
        """Whether every pixel is labelled, so that none is selected."""
        return self.budget == "full"

    @property
    def redraws(self) -> bool:
        """Whether each training step redraws the annotator's mistakes."""
        return isinstance(self.oracle, ErringSpec) and self.oracle.redrawn and not self.is_fully_supervised

    @property
    def asks_people(self) -> bool:
        """Whether people answer its questions."""
        return isinstance(self.oracle, HumanSpec) and not self.is_fully_supervised

    def budget_of(self, stage: int) -> int:
        """Labelled pixels per image in a stage of active learning (0-based)."""
        return self.acquire.initial_pixels + stage * self.acquire.pixels_per_stage
