"""The network: a backbone, trained or frozen, and the head on its features."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from pixelpick_ray.config import parts
from pixelpick_ray.config.spec import Count, Fraction, NonNegative, Positive, Spec


class PixelHeadSpec(Spec):
    """Base of the heads that classify each pixel by its own feature vector."""

    trainable: ClassVar[frozenset[str] | None] = None  # fields used when trained with the backbone; None: cannot be
    is_random: ClassVar[bool] = False  # whether fitting uses random numbers
    keeps_vectors: ClassVar[bool] = False  # whether it stores every labelled vector

    @property
    def has_dropout(self) -> bool:
        """Whether it has dropout, so that stochastic passes differ."""
        return False


class LinearSpec(PixelHeadSpec):
    """Softmax regression on standardised features with an L2 penalty of ``l2`` / 2 times the squared weights.

    ``cv`` selects ``l2`` by cross-validation over the labelled pixels, holding out whole images.
    """

    name: Literal["linear"] = "linear"
    l2: Positive | Literal["cv"] = "cv"

    trainable: ClassVar[frozenset[str] | None] = frozenset()


class MlpSpec(PixelHeadSpec):
    """Multilayer perceptron: ReLU layers of ``hidden`` units with dropout, trained with AdamW and cosine decay."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (256,)
    dropout: Fraction = 0.5
    epochs: Count = 40
    batch_size: Count = 256
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1e-3

    trainable: ClassVar[frozenset[str] | None] = frozenset({"hidden", "dropout"})
    is_random: ClassVar[bool] = True

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 and bool(self.hidden)


class KnnSpec(PixelHeadSpec):
    """Vote of the ``k`` labelled pixels of highest cosine similarity s (Wu et al. 2018, section 3.4).

    Votes are weighted by exp(s / ``temperature``).
    """

    name: Literal["knn"] = "knn"
    k: Count = 20
    temperature: Positive = 0.07

    keeps_vectors: ClassVar[bool] = True


class PrototypeSpec(PixelHeadSpec):
    """Cosine similarity to each class's mean unit-length feature, over ``temperature`` (after Snell et al. 2017)."""

    name: Literal["prototype"] = "prototype"
    temperature: Positive = 0.07


HeadSpec = Annotated[LinearSpec | MlpSpec | KnnSpec | PrototypeSpec, Field(discriminator="name")]
PIXEL_HEADS: dict[str, type[PixelHeadSpec]] = {
    "linear": LinearSpec,
    "mlp": MlpSpec,
    "knn": KnnSpec,
    "prototype": PrototypeSpec,
}


# Fields that, with the weights and the normalisation, determine the features of a frozen backbone.
FEATURE_FIELDS = {"backbone", "width", "output_stride", "layers", "feature_stride", "input_scale"}


class NormaliseSpec(Spec):
    """Mean and standard deviation that RGB images (values in 0..1) are normalised with."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class ViewSpec(Spec):
    """An additional view of an image: resized by ``scale``, optionally flipped horizontally."""

    scale: Positive = 1.0
    flip: bool = False

    @model_validator(mode="after")
    def _is_another(self) -> Self:
        if self.scale == 1.0 and not self.flip:
            raise ValueError("views: scale 1 without flip is the image itself, which is always included; leave it out")
        return self


# Defaults by architecture; a pixel head's own dropout is a field of the head.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {"output_stride": 16, "dropout": (0.5, 0.5, 0.2)},
    "fpn": {"output_stride": 8, "dropout": ()},
}
_PIXEL_HEAD = {"output_stride": 32, "dropout": ()}
_EXTERNAL = {"output_stride": 16, "dropout": ()}


def _of_the_architecture(field: str) -> Any:
    """A field whose default depends on the architecture; an unknown architecture is rejected elsewhere."""

    def default(given: dict[str, Any]) -> Any:
        name = given.get("architecture")
        return (_PIXEL_HEAD if name in PIXEL_HEADS else _ARCHITECTURES.get(str(name), _EXTERNAL))[field]

    return Field(default_factory=default)


def with_head(fields: Any) -> Any:
    """The JSON fields of a model with a pixel head given as both ``head`` and ``architecture``.

    ``head: linear``, ``head: {name: linear}`` and ``architecture: linear`` are equivalent.
    """
    if not isinstance(fields, dict):
        return fields
    head = fields.get("head")
    if isinstance(head, dict) and isinstance(head.get("name"), str):
        return fields | {"architecture": head["name"]}
    if isinstance(head, str):
        fields = fields | {"architecture": head, "head": None}
    elif head is not None:
        return fields
    name = fields.get("architecture")
    return fields | {"head": {"name": name}} if isinstance(name, str) and name in PIXEL_HEADS else fields


def _without_choice(spec: "ModelSpec") -> Literal["weights", "dataset"]:
    return "weights" if spec.frozen and spec.pretrained != "none" else "dataset"


class ModelSpec(Spec):
    """The network: a backbone, and a head on it, which ``head`` and ``architecture`` both name.

    ``width`` scales the channels of a ResNet's stages. ``dropout`` lists the rates after ASPP, in the decoder and
    before the classifier of DeepLabv3+; the FPN has none. ``feature_dropout`` is the rate at which whole channels of
    the backbone's features are dropped, for Monte Carlo dropout.

    A ``frozen`` backbone is not trained, batch norm included. The pixel heads (``linear``, ``mlp``, ``knn``,
    ``prototype``) are then fitted to features that are computed once; ``linear`` and ``mlp`` can also be trained with
    their backbone. They use the backbone's ``layers``: negative numbers count from the last layer, positive ones are
    strides of a feature pyramid; the default is every level of a pyramid, or the last map of a network whose maps all
    have one stride. The layers are resampled to ``feature_stride`` (default 8 for pyramids) and concatenated.
    ``input_scale`` resizes the images first. A head on frozen features is also fitted to the labelled pixels in
    ``views`` of their image.

    ``normalise`` selects the mean and standard deviation that images are normalised with: those of the pretrained
    weights (default in an experiment file), those of the data set, or given values. Results stored before this option
    existed used those of the weights for a frozen backbone, and those of the data set otherwise.
    """

    architecture: str = "deeplabv3plus"
    backbone: str
    pretrained: str = "imagenet"
    width: Positive | None = None
    output_stride: Literal[8, 16, 32] = _of_the_architecture("output_stride")
    dropout: tuple[Fraction, ...] = _of_the_architecture("dropout")
    feature_dropout: Fraction = 0.0
    head: HeadSpec | None = None
    frozen: bool = False
    layers: tuple[int, ...] | None = None
    feature_stride: Literal[4, 8, 16, 32] | None = None
    input_scale: Positive | None = None
    views: tuple[ViewSpec, ...] | None = None
    normalise: Literal["weights", "dataset"] | NormaliseSpec | None = None

    @model_serializer(mode="wrap")
    def _older_meaning_is_absent(
        self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Omit values that mean what was fixed before these options existed: keys and records stay as they were."""
        fields: dict[str, Any] = serialise(self)
        if info.exclude_none and not fields.get("frozen"):
            fields.pop("frozen", None)
        if info.exclude_none and self.normalised_by == _without_choice(self):
            fields.pop("normalise", None)
        return fields

    @property
    def normalised_by(self) -> Literal["weights", "dataset"] | NormaliseSpec:
        """`normalise` or, if absent, its meaning before the option existed; ``dataset`` without pretrained weights."""
        said = self.normalise or _without_choice(self)
        return "dataset" if said == "weights" and self.pretrained == "none" else said

    @model_validator(mode="after")
    def _fits_the_architecture(self) -> Self:
        for field in ("backbone", "pretrained"):  # both are part of a file name
            name = getattr(self, field)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and not name.startswith("file:"):
                raise ValueError(f"{field}: {name!r} is not a valid name; letters, digits, _, . and - are allowed")
        known = _ARCHITECTURES.get(self.architecture)
        if (self.head.name if self.head else None) != (self.architecture if self.architecture in PIXEL_HEADS else None):
            raise ValueError(
                f"head: {self.head!r} conflicts with architecture {self.architecture!r}, its synonym; give only one"
            )
        if known is None and self.head is None and not parts.is_external("head", self.architecture):
            names = ", ".join([*_ARCHITECTURES, *PIXEL_HEADS, *parts.names("head")])
            raise ValueError(f"architecture: unknown {self.architecture!r}; known: {names}, or file:PATH.py:NAME")
        rates = 0 if self.head is not None else len(self.dropout if known is None else known["dropout"])
        if len(self.dropout) != rates:
            raise ValueError(f"dropout: {self.architecture} takes {rates} rates; got {list(self.dropout)}")
        if self.architecture == "fpn" and self.output_stride != 8:
            raise ValueError(f"output_stride: fpn needs 8; got {self.output_stride}")
        if self.width is not None and self.pretrained != "none":
            raise ValueError("width: cannot be combined with pretrained weights; set pretrained: none")
        return self

    @model_validator(mode="after")
    def _fits_the_head(self) -> Self:
        if self.head is None:
            for field in ("layers", "feature_stride", "input_scale", "views"):
                if getattr(self, field) is not None:
                    raise ValueError(
                        f"{field}: does not apply to {self.architecture}; leave it out, or use a head that "
                        f"classifies single pixels: {', '.join(PIXEL_HEADS)}"
                    )
        elif not self.frozen:
            self._check_trained(self.head)
        if self.layers is not None and (0 in self.layers or not 0 < len(set(self.layers)) == len(self.layers)):
            raise ValueError(
                "layers: should be distinct layers, counted from the last (-1, -2, ...), or strides (4, 8, ...); got "
                f"{list(self.layers)}"
            )
        return self

    def _check_trained(self, head: PixelHeadSpec) -> None:
        """Raise ValueError for options that a head trained with its backbone cannot have."""
        trainable = [name for name, spec in PIXEL_HEADS.items() if spec.trainable is not None]
        if head.trainable is None:
            raise ValueError(
                f"frozen: the head {self.architecture} needs a frozen backbone; set frozen: true, or use a head that "
                f"is trained with its backbone: {', '.join((*_ARCHITECTURES, *trainable))}"
            )
        for field in type(head).model_fields.keys() - {"name"} - head.trainable:
            if getattr(head, field) != type(head).model_fields[field].default:
                raise ValueError(f"head.{field}: applies only with a frozen backbone; use the options of train instead")
        if self.views is not None:
            raise ValueError("views: apply only with a frozen backbone; use train.augment instead")

    def seen_in(self, view: ViewSpec | None) -> Self:
        """The model that computes the features of a view, flipping aside; None is the image itself."""
        scale = self.input_scale if view is None else (self.input_scale or 1.0) * view.scale
        return self.model_copy(update={"input_scale": scale, "views": None})

    @property
    def fitted_head(self) -> HeadSpec | None:
        """The head that is fitted to frozen features; None if a network is trained."""
        return self.head if self.frozen else None

    @property
    def has_dropout(self) -> bool:
        """Whether there is any dropout, so that stochastic passes differ."""
        return any((*self.dropout, self.feature_dropout)) or (self.head is not None and self.head.has_dropout)

    @property
    def is_deterministic(self) -> bool:
        """Whether fits use no random numbers, so that they are the same for every seed and stage."""
        head = self.fitted_head
        return self.pretrained != "none" and head is not None and not head.is_random
