"""One point of the grid: every choice that changes the science, and what is measured."""

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
    """The size that images are prepared to: at most one of the three; none means the native size."""

    size: tuple[Count, Count] | None = None
    scale: Positive | None = None
    long_side: Count | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        given = [name for name in ("size", "scale", "long_side") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one of size, scale, long_side")
        return self

    def size_spec(self) -> "SizeSpec":
        """The size alone, of a spec that says more."""
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
    """The training images: data set, prepared size, and how many of them (a nested random subset by seed).

    ``split`` is the split to train on, by default the data set's own training split. ``path`` is for ``folder``, the
    user's own images: the folder inside the data folder that holds ``dataset.yaml``. ``held_out`` is a share of the
    training images, the same ones for every seed, that is never trained on and becomes a further split, ``held_out``.
    ``images`` are drawn from the others.
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
    """Whether a path may leave the folder that it is relative to, or is none; links are another matter."""
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not is_line(path)


def is_line(text: str) -> bool:
    """Whether a text is one line that UTF-8 can write: without control characters and lone surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


class AdamSpec(Spec):
    """Adam with L2 weight decay, betas (0.9, 0.999), eps 1e-8.

    The backbone learns at ``lr`` times ``backbone_lr_factor``, and each of its layers at ``layer_decay`` times the rate
    of the one above (Clark et al. 2020, section 3.2).
    """

    name: Literal["adam"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    layer_decay: PositiveFraction | None = None
    weight_decay: NonNegative = 0.0


class SgdSpec(Spec):
    """Stochastic gradient descent with momentum and L2 weight decay; rates of the backbone as for ``adam``."""

    name: Literal["sgd"]
    lr: Positive
    backbone_lr_factor: NonNegative = 0.1
    layer_decay: PositiveFraction | None = None
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9


class ConstantSpec(Spec):
    """The learning rate stays the same."""

    name: Literal["constant"] = "constant"


class MultistepSpec(Spec):
    """The learning rate is multiplied by ``gamma`` once each of the ``milestones`` (finished epochs) is reached."""

    name: Literal["multistep"]
    milestones: tuple[Count, ...]
    gamma: Positive = 0.1

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: must ascend without repeats; got {list(self.milestones)}")
        return self


class PolySpec(Spec):
    """The learning rate falls as (1 - t/N)^power over the N iterations of a stage."""

    name: Literal["poly"]
    power: Positive = 0.9


class JitterSpec(Spec):
    """Colour jitter in random order: strengths as in torchvision's ColorJitter."""

    probability: Fraction = 0.8
    brightness: NonNegative = 0.8
    contrast: NonNegative = 0.8
    saturation: NonNegative = 0.8
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2


class BlurSpec(Spec):
    """Gaussian blur; the odd kernel size is int(kernel_fraction * short side // 2 * 2 + 1)."""

    probability: Fraction = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    kernel_fraction: Fraction = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma: must be [smallest, largest]; got {list(self.sigma)}")
        return self


class AugmentSpec(Spec):
    """Augmentation in this order: scale, pad and crop, flip, jitter, grayscale, blur."""

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


# What of a training means nothing to full supervision, and is not in keys while it is this.
SPARSE_ONLY: dict[str, Any] = {"decoder": "dense", "exact_labels": True}


class TrainSpec(Spec):
    """How one stage is trained; ``batch_size`` is global, over all ranks.

    With ``decoder: sparse`` the decoder of DeepLabv3+ runs around the labelled pixels only. It is the same function
    except for the statistics that its batch norm trains with: those of these places, not of whole images. Evaluation,
    picking and full supervision are dense.

    With ``exact_labels`` a labelled pixel keeps its place, usually between pixels, and counts once. Without, labels are
    resized with the image, to the nearest pixel, as in the original in 2021: enlarging copies some, shrinking loses
    some.
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
        """Keys are older than the options."""
        fields: dict[str, Any] = serialise(self)
        absent = SPARSE_ONLY if info.exclude_none else {}
        return {name: value for name, value in fields.items() if name not in absent or value != absent[name]}


class StochasticSpec(Spec):
    """Monte Carlo dropout (Gal and Ghahramani 2016): passes with dropout on, and how they vote.

    ``soft`` is the mean of the passes' scores, ``hard`` the score of the shares of passes that vote for each class.
    """

    passes: Annotated[int, Field(ge=2)] = 20
    vote: Literal["soft", "hard"] = "soft"


class AcquireSpec(Spec):
    """How pixels are chosen.

    With ``pool: score`` the pool of an image is its best-scored pixels and the picks are drawn from it at random; with
    ``pool: chance`` the pool is drawn at random and the picks are its best. ``pool_fraction: 0`` picks the best pixels
    directly.
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
            raise ValueError("pool_fraction: a pool by chance needs a size above 0, e.g. 0.05")
        return self


class GroundTruthSpec(Spec):
    """The data set's labels are the answers."""

    name: Literal["ground_truth"] = "ground_truth"


class ErringSpec(Spec):
    """An annotator who makes mistakes: at a rate, evenly among the other classes, or by a confusion matrix.

    ``confusion[a][b]`` is the probability that a pixel of class a is called b, both by name; what is not given is 0,
    and the rest of each class is answered correctly. A pixel gets the same answer whenever, and by whichever strategy,
    it is asked for.

    With ``from: queries`` the first pixels, which no network asked for, are answered correctly. With ``redrawn`` it is
    still decided once which pixels are wrong, but the wrong class is drawn anew in each training step, as in the
    original in 2021; the stored labels are then the true ones.
    """

    name: Literal["erring"]
    rate: Fraction | None = None
    confusion: dict[str, dict[str, Fraction]] | None = None
    redrawn: bool = False
    starts: Literal["first", "queries"] = Field("first", alias="from")

    @model_serializer(mode="wrap")
    def _defaults_are_absent(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Keys are older than the options; `from` is no name in Python."""
        fields: dict[str, Any] = serialise(self)
        fields["from"] = fields.pop("starts", fields.get("from"))
        absent = {"redrawn": False, "from": "first"} if info.exclude_none else {}
        return {name: value for name, value in fields.items() if name not in absent or value != absent[name]}

    @model_validator(mode="after")
    def _one_way_to_err(self) -> Self:
        if (self.rate is None) == (self.confusion is None):
            raise ValueError("rate: give either rate or confusion")
        for truth, said in (self.confusion or {}).items():
            if truth in said or sum(said.values()) > 1 + 1e-9:
                raise ValueError(f"confusion: {truth}: give other classes only, 1 in all at most; got {said}")
        return self


class HumanSpec(Spec):
    """People answer, on the page of the command `annotate`; chains wait for them.

    With ``suggestions`` the page proposes the class that the network predicts, which is faster but biases the answers:
    they are kept apart from those given without. With ``replace`` a pixel that gets no class, because it is none of
    them or nobody can tell, is replaced by another pixel of its image.
    """

    name: Literal["human"]
    suggestions: bool = False
    replace: bool = False


class ExternalOracleSpec(Spec):
    """An oracle from a file or an installed package, and the options it is called with."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _oracle_tag(value: Any) -> str | None:
    if not isinstance(value, (dict, Spec)):
        return "ground_truth"  # which says what is wrong with it
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
    """One evaluated split and its size; ``split`` is only needed to evaluate one split under several names."""

    split: str | None = None


class EvaluateSpec(Spec):
    """Which splits are evaluated, at which size, when, and which of them is reported."""

    splits: dict[str, EvaluatedSpec]
    when: Literal["last", "every_epoch"] = "last"
    report: str

    @model_validator(mode="after")
    def _reported_is_evaluated(self) -> Self:
        if not self.splits:
            raise ValueError("splits: none given; give at least one, e.g. splits: {val: {}}")
        if self.report not in self.splits:
            raise ValueError(f"report: {self.report!r} is not among the evaluated splits {sorted(self.splits)}")
        return self

    def split_of(self, name: str) -> str:
        """The data set's split that is evaluated under a name."""
        return self.splits[name].split or name

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names under which other splits than the reported one are evaluated: epochs may be chosen on them."""
        return tuple(name for name in self.splits if self.split_of(name) != self.split_of(self.report))


class Trial(Spec):
    """One point of the grid: everything that changes the science."""

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
            raise ValueError(f"train: is required, {self.model.architecture} is trained by gradient descent")
        if self.redraws and self.model.fitted_head is not None:
            raise ValueError(
                f"oracle.redrawn: {self.model.architecture} on frozen features is fitted to its labels at once, which "
                "leaves nothing to draw anew; leave redrawn out"
            )
        if self.budget == "full" and self.model.fitted_head is not None and self.model.fitted_head.keeps_vectors:
            raise ValueError(
                f"budget: {self.model.architecture} compares with every labelled pixel, and full supervision labels "
                "too many; use another head, such as linear, or leave full out"
            )
        if train is not None and train.decoder == "sparse" and self.model.architecture != "deeplabv3plus":
            raise ValueError(
                f"train.decoder: {self.model.architecture} normalises over whole images (group norm), around labelled "
                "pixels it would be another network; leave out decoder, or use architecture deeplabv3plus"
            )
        stochastic = self.acquire.stochastic is not None and self.budget != "full"
        if stochastic and not self.model.has_dropout:
            raise ValueError(
                "acquire.stochastic: every pass would be the same, the network has no dropout; give model.dropout or "
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
                f"budget: the stages do not reach {self.budget} exactly: they start at {first} (initial_pixels) and "
                f"add {step} (pixels_per_stage); the nearest are {below} and {below + step}"
            )

    @property
    def external_parts(self) -> tuple[tuple[str, str], ...]:
        """Kind and resolved name of what is not built in."""
        tree: Any = self
        named = [(kind, attrgetter(path)(tree)) for path, kind in parts.FIELDS.items()]
        return tuple((kind, name) for kind, name in named if "@" in name)

    def as_named(self) -> dict[str, Any]:
        """JSON-ready fields in which parts have the names that the experiment file gives them, whatever their code."""
        tree = self.as_input()
        for path in parts.FIELDS:
            spec, _, field = path.partition(".")
            tree[spec][field] = tree[spec][field].partition("@")[0]
        return tree

    @property
    def training(self) -> TrainSpec | None:
        """How its stages are trained: `train`, of which full supervision has no use for what is about few labels, and
        a head on frozen features none at all.
        """
        if self.model.fitted_head is not None or self.train is None:
            return None
        return self.train.model_copy(update=SPARSE_ONLY) if self.budget == "full" else self.train

    @property
    def epochs(self) -> int:
        """Epochs of a stage; a head that is fitted to frozen features counts as one."""
        return 1 if self.training is None else self.training.epochs

    @cached_property
    def chain_id(self) -> str:
        """Identity of the chain that the trial is a prefix of: everything but the budget; full supervision has no
        strategy.
        """
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
        """Stages up to the budget; 1 for full supervision."""
        if self.budget == "full":
            return 1
        return 1 + (self.budget - self.acquire.initial_pixels) // self.acquire.pixels_per_stage

    @property
    def is_fully_supervised(self) -> bool:
        """Whether every pixel is labelled, so that none is picked."""
        return self.budget == "full"

    @property
    def redraws(self) -> bool:
        """Whether training draws the mistakes of its annotator."""
        return isinstance(self.oracle, ErringSpec) and self.oracle.redrawn and not self.is_fully_supervised

    @property
    def asks_people(self) -> bool:
        """Whether people answer for it."""
        return isinstance(self.oracle, HumanSpec) and not self.is_fully_supervised

    def budget_of(self, stage: int) -> int:
        """Pixels per image that a stage of active learning trains on."""
        return self.acquire.initial_pixels + stage * self.acquire.pixels_per_stage
