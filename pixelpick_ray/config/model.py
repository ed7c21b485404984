"""The network: a backbone, trained or frozen, and the head on its features."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from pixelpick_ray.config import parts
from pixelpick_ray.config.spec import Count, Fraction, NonNegative, Positive, Spec


class PixelHeadSpec(Spec):
    """What all heads that look at one pixel say of themselves. ``trainable`` are the fields that it has when it is
    trained with its backbone, by the options of ``train``; None where it cannot be.
    """

    trainable: ClassVar[frozenset[str] | None] = None
    is_random: ClassVar[bool] = False  # whether a fit draws something at random
    keeps_vectors: ClassVar[bool] = False  # whether it keeps every labelled vector

    @property
    def has_dropout(self) -> bool:
        """Whether it drops something at random, so that stochastic passes differ."""
        return False


class LinearSpec(PixelHeadSpec):
    """Softmax regression on standardised features with L2 penalty ``l2`` / 2 times the squared weights.

    ``cv`` chooses the penalty by cross-validation over the labelled pixels, leaving out whole images.
    """

    name: Literal["linear"] = "linear"
    l2: Positive | Literal["cv"] = "cv"

    trainable: ClassVar[frozenset[str] | None] = frozenset()


class MlpSpec(PixelHeadSpec):
    """A perceptron with ReLU layers of ``hidden`` units and dropout after each, trained with Adam and cosine decay."""

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
    """Votes of the ``k`` labelled pixels of largest cosine similarity s, each with weight exp(s / ``temperature``) (Wu
    et al. 2018, section 3.4).
    """

    name: Literal["knn"] = "knn"
    k: Count = 20
    temperature: Positive = 0.07

    keeps_vectors: ClassVar[bool] = True


class PrototypeSpec(PixelHeadSpec):
    """Cosine similarity to the mean of each class's features of length 1, divided by ``temperature`` (Snell et al.
    2017).
    """

    name: Literal["prototype"] = "prototype"
    temperature: Positive = 0.07


HeadSpec = Annotated[LinearSpec | MlpSpec | KnnSpec | PrototypeSpec, Field(discriminator="name")]
PIXEL_HEADS: dict[str, type[PixelHeadSpec]] = {
    "linear": LinearSpec,
    "mlp": MlpSpec,
    "knn": KnnSpec,
    "prototype": PrototypeSpec,
}


# What of a model decides the features of its frozen backbone, beside its weights and the values of normalisation.
FEATURE_FIELDS = {"backbone", "width", "output_stride", "layers", "feature_stride", "input_scale"}


class NormaliseSpec(Spec):
    """What images (values in 0..1) are normalised with, for red, green and blue."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class ViewSpec(Spec):
    """Another view of an image: enlarged ``scale`` times, and flipped from left to right."""

    scale: Positive = 1.0
    flip: bool = False

    @model_validator(mode="after")
    def _is_another(self) -> Self:
        if self.scale == 1.0 and not self.flip:
            raise ValueError("views: scale 1 without flip is the image itself, which is always there; leave it out")
        return self


# What a network with a decoder has unless its spec says otherwise; other heads have no dropout rates of their own here.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {"output_stride": 16, "dropout": (0.5, 0.5, 0.2)},
    "fpn": {"output_stride": 8, "dropout": ()},
}
_PIXEL_HEAD = {"output_stride": 32, "dropout": ()}
_EXTERNAL = {"output_stride": 16, "dropout": ()}


def _of_the_architecture(field: str) -> Any:
    """A field whose default depends on the architecture (the usual one where that is wrong itself)."""

    def default(given: dict[str, Any]) -> Any:
        name = given.get("architecture")
        return (_PIXEL_HEAD if name in PIXEL_HEADS else _ARCHITECTURES.get(str(name), _EXTERNAL))[field]

    return Field(default_factory=default)


def with_head(fields: Any) -> Any:
    """JSON fields of a model in which a pixel head stands under both of its names: ``head: linear`` and ``head: {name:
    linear}`` mean ``architecture: linear`` too, and the other way round. Another head is an architecture alone.
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
    """The network. ``head`` and ``architecture`` are two words for the same: what is placed on the backbone.

    ``width`` multiplies the channels of a ResNet's stages. ``dropout`` has the rates after ASPP, in the decoder and
    before the classifier of DeepLabv3+; the FPN has none. ``feature_dropout`` is the rate at which whole channels of
    the backbone's features are dropped, for Monte Carlo dropout.

    A ``frozen`` backbone stays as it is, batch norm included. The heads that look at one pixel (``linear``, ``mlp``,
    ``knn``, ``prototype``) are then fitted to features that are computed once; ``linear`` and ``mlp`` can also be
    trained with their backbone. They use the backbone's ``layers``: negative numbers count from the last one, positive
    ones are strides of a feature pyramid; by default all of a pyramid, or the last of a network with maps of one
    stride. All are brought to ``feature_stride`` (8 for pyramids) and joined. ``input_scale`` enlarges the images
    first. A head on frozen features is also fitted to labelled pixels in ``views`` of their image.

    ``normalise`` says with which mean and deviation images are normalised: those that the pretrained weights were made
    with (the default of an experiment file), the data set's, or these values. What was stored before there was a choice
    has the weights' where the backbone is frozen, and the data set's elsewhere.
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
        """Keys and records are older than these options."""
        fields: dict[str, Any] = serialise(self)
        if info.exclude_none and not fields.get("frozen"):
            fields.pop("frozen", None)
        if info.exclude_none and self.normalised_by == _without_choice(self):
            fields.pop("normalise", None)
        return fields

    @property
    def normalised_by(self) -> Literal["weights", "dataset"] | NormaliseSpec:
        """What `normalise` says or, where it says nothing, has always meant; weights that are none have no values."""
        said = self.normalise or _without_choice(self)
        return "dataset" if said == "weights" and self.pretrained == "none" else said

    @model_validator(mode="after")
    def _fits_the_architecture(self) -> Self:
        for field in ("backbone", "pretrained"):  # both are in the name of a file
            name = getattr(self, field)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and not name.startswith("file:"):
                raise ValueError(f"{field}: {name!r} is not a valid name; letters, digits, _, . and - are allowed")
        known = _ARCHITECTURES.get(self.architecture)
        if (self.head.name if self.head else None) != (self.architecture if self.architecture in PIXEL_HEADS else None):
            raise ValueError(f"head: {self.head!r} and architecture {self.architecture!r} should name the same thing")
        if known is None and self.head is None and not parts.is_external("head", self.architecture):
            names = ", ".join([*_ARCHITECTURES, *PIXEL_HEADS, *parts.names("head")])
            raise ValueError(f"architecture: unknown {self.architecture!r}; known: {names}, or file:PATH.py:NAME")
        rates = 0 if self.head is not None else len(self.dropout if known is None else known["dropout"])
        if len(self.dropout) != rates:
            raise ValueError(f"dropout: {self.architecture} has {rates} rates; got {list(self.dropout)}")
        if self.architecture == "fpn" and self.output_stride != 8:
            raise ValueError(f"output_stride: fpn works on features at stride 8; got {self.output_stride}")
        if self.width is not None and self.pretrained != "none":
            raise ValueError("width: no pretrained weights fit a changed width; set pretrained: none")
        return self

    @model_validator(mode="after")
    def _fits_the_head(self) -> Self:
        if self.head is None:
            for field in ("layers", "feature_stride", "input_scale", "views"):
                if getattr(self, field) is not None:
                    raise ValueError(
                        f"{field}: {self.architecture} takes the features that it was made for; leave {field} out, or "
                        f"use a head that looks at one pixel: {', '.join(PIXEL_HEADS)}"
                    )
        elif not self.frozen:
            self._check_trained(self.head)
        if self.layers is not None and (0 in self.layers or not 0 < len(set(self.layers)) == len(self.layers)):
            raise ValueError(
                "layers: should be different numbers, from the last (-1, -2, ...) or strides (4, 8, ...); got "
                f"{list(self.layers)}"
            )
        return self

    def _check_trained(self, head: PixelHeadSpec) -> None:
        """ValueError for what a head that is trained with its backbone cannot have."""
        trainable = [name for name, spec in PIXEL_HEADS.items() if spec.trainable is not None]
        if head.trainable is None:
            raise ValueError(
                f"frozen: the head {self.architecture} is fitted to features of a frozen backbone; add frozen: true, "
                f"or use head {', '.join((*_ARCHITECTURES, *trainable))}, which train the backbone"
            )
        for field in type(head).model_fields.keys() - {"name"} - head.trainable:
            if getattr(head, field) != type(head).model_fields[field].default:
                raise ValueError(f"head.{field}: needs a frozen backbone; how this one is trained is set in train")
        if self.views is not None:
            raise ValueError("views: need a frozen backbone; train.augment varies the images that are trained on")

    def seen_in(self, view: ViewSpec | None) -> Self:
        """The model whose features are those of a view of the images, but for flipping; None is the image itself."""
        scale = self.input_scale if view is None else (self.input_scale or 1.0) * view.scale
        return self.model_copy(update={"input_scale": scale, "views": None})

    @property
    def fitted_head(self) -> HeadSpec | None:
        """The head that is fitted to features of a frozen backbone; None where a network is trained."""
        return self.head if self.frozen else None

    @property
    def has_dropout(self) -> bool:
        """Whether something is dropped at random, so that stochastic passes differ."""
        return any((*self.dropout, self.feature_dropout)) or (self.head is not None and self.head.has_dropout)

    @property
    def is_deterministic(self) -> bool:
        """Whether its fits draw nothing at random, so that they are the same for every seed and stage."""
        head = self.fitted_head
        return self.pretrained != "none" and head is not None and not head.is_random
