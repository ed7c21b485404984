"""Pixel heads on frozen features, by name in ``HEADS``: fitted in seconds, most of them exactly.

>>> head = fit_head(LinearSpec(), labelled, num_classes=11, seed=0, stage=0)
>>> logits = head(features)  # (N, D, h, w) to (N, C, h, w)

Every head standardises features by the mean and standard deviation of its labelled vectors. A new head is a class here
and a spec in ``config/model.py``.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor, nn

from pixelpick_ray.active.metrics import miou
from pixelpick_ray.config.model import KnnSpec, LinearSpec, MlpSpec, PrototypeSpec
from pixelpick_ray.data.streams import stream, stream_seed
from pixelpick_ray.models.dropout import Dropout

BLOCK = 65536  # vectors converted to float32 at once
FOLDS = 3
TOLERANCE = 1e-3  # on the gradient of softmax regression
BASIS_VECTORS = 4096
CURVATURE = 0.2  # the cross entropy's curvature for a class of frequency p is about this times p (1 - p)
SMALLEST_CURVATURE = 1e-4
PRODUCT_VECTORS = 1024
PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001)  # tried by cross-validation, in this order
SMALLEST_SHARE = 1e-4  # lower bound on a class's share of the nearest neighbours' votes, so that its log is finite


@dataclass(frozen=True)
class LabelledVectors:
    """Training data of a head: float16 or float32 vectors (n, D), pixel counts by class (n, C), image indices (n,)."""

    vectors: npt.NDArray[Any]
    counts: npt.NDArray[np.float32]
    images: npt.NDArray[np.int64]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield vectors and counts as float32, in blocks."""
        for start in range(0, len(self.vectors), BLOCK):
            at = slice(start, start + BLOCK)
            yield torch.from_numpy(np.array(self.vectors[at])).float(), torch.from_numpy(np.array(self.counts[at]))

    def where(self, chosen: npt.NDArray[np.bool_]) -> "LabelledVectors":
        """The subset given by a mask (n,)."""
        return LabelledVectors(self.vectors[chosen], self.counts[chosen], self.images[chosen])

    def standard(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) of the vectors; the latter is 1 for constant features."""
        total = torch.zeros(self.vectors.shape[1], dtype=torch.float64)
        for block, _ in self.blocks():
            total += block.sum(dim=0, dtype=torch.float64)
        mean, squares = total / len(self.vectors), torch.zeros_like(total)
        for block, _ in self.blocks():
            squares += (block - mean.float()).square().sum(dim=0, dtype=torch.float64)
        deviation = (squares / len(self.vectors)).sqrt()
        return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()


class PixelHead(Protocol):
    """A fitted head: a module whose tensors are all in its ``state_dict``."""

    @classmethod
    def fit(cls, spec: Any, labelled: LabelledVectors, num_classes: int, seed: int, stage: int) -> Self:
        """Fit a head; random numbers come from streams of the seed and stage."""

    @classmethod
    def of(cls, spec: Any, tensors: Mapping[str, Tensor]) -> Self:
        """Restore a fitted head from its ``state_dict``."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (N, D, h, w) float32 to logits (N, C, h, w), each image independently of the others."""


class _Fitted(nn.Module):
    """A head whose tensors are buffers."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        rows = features.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
        logits = torch.stack([self.logits(image) for image in rows])
        return logits.transpose(1, 2).reshape(len(rows), -1, height, width)

    def logits(self, vectors: Tensor) -> Tensor:
        """Logits (n, C) of the vectors (n, D) of one image."""
        raise NotImplementedError

    def directions(self, vectors: Tensor) -> Tensor:
        """Standardised vectors (n, D), scaled to unit length."""
        return F.normalize((vectors - cast(Tensor, self.mean)) / cast(Tensor, self.deviation), dim=1)


class Linear(_Fitted):
    """Softmax regression (`LinearSpec`), with standardisation folded into its weights."""

    @classmethod
    def fit(cls, spec: LinearSpec, labelled: LabelledVectors, num_classes: int, seed: int, stage: int) -> "Linear":
        mean, deviation = labelled.standard()
        penalty = _validated_penalty(labelled, mean, deviation) if spec.l2 == "cv" else float(spec.l2)
        weight, bias = _regression(labelled, mean, deviation, penalty, None, TOLERANCE)
        weight = weight / deviation
        return cls(weight=weight, bias=bias - weight @ mean, penalty=torch.tensor(penalty))

    @classmethod
    def of(cls, spec: LinearSpec, tensors: Mapping[str, Tensor]) -> "Linear":
        return cls(**tensors)

    def logits(self, vectors: Tensor) -> Tensor:
        return torch.addmm(cast(Tensor, self.bias), vectors, cast(Tensor, self.weight).T)


@dataclass(frozen=True)
class _Basis:
    """A change of variables that roughly equalises curvature, so that L-BFGS takes few steps; the minimum is the same.

    `axes` (D, D) are the principal axes of the standardised vectors, `scales` (C, D + 1) those of each class's weight
    along them and of its bias.
    """

    axes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, labelled: LabelledVectors, mean: Tensor, deviation: Tensor, penalty: float) -> "_Basis":
        step = -(-len(labelled.vectors) // BASIS_VECTORS)
        some = torch.from_numpy(np.array(labelled.vectors[::step])).float().sub_(mean).div_(deviation)
        variances, axes = _principal_axes(some)
        shares = torch.from_numpy(labelled.counts.sum(axis=0, dtype=np.float64)).float()
        shares = shares / shares.sum()
        curvature = (shares * (1 - shares) * CURVATURE).clamp_(min=SMALLEST_CURVATURE)[:, None]
        squares = torch.cat([curvature * variances.clamp_(min=0.0) + penalty, curvature], dim=1)
        return cls(axes, squares.rsqrt_())

    def unpacked(self, values: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Weight (C, D) for standardised vectors and bias (C,), from values in this basis."""
        both = torch.from_numpy(values).view(self.scales.shape).float() * self.scales
        return both[:, :-1] @ self.axes.T, both[:, -1]

    def packed(self, weight: Tensor, bias: Tensor) -> npt.NDArray[np.float64]:
        """Weight and bias as values in this basis."""
        return (torch.cat([weight @ self.axes, bias[:, None]], dim=1) / self.scales).double().flatten().numpy()

    def slope(self, weight: Tensor, bias: Tensor) -> npt.NDArray[np.float64]:
        """The gradient in this basis, from the gradients by weight and bias."""
        return (torch.cat([weight @ self.axes, bias[:, None]], dim=1) * self.scales).double().flatten().numpy()


def _principal_axes(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (D,) along the principal axes (D, D) of vectors (n, D); if LAPACK fails, the axes are the features."""
    covariance = vectors.T @ vectors / len(vectors)
    with contextlib.suppress(RuntimeError):  # torch's LinAlgError; any basis gives the same minimum
        variances, axes = torch.linalg.eigh(covariance)
        return variances, axes
    return covariance.diag(), torch.eye(len(covariance))


def _regression(
    labelled: LabelledVectors,
    mean: Tensor,
    deviation: Tensor,
    penalty: float,
    start: tuple[Tensor, Tensor] | None,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of softmax regression on standardised vectors.

    Minimises the mean cross entropy plus `penalty` / 2 times the squared weights, a convex problem, by L-BFGS until no
    component of the gradient exceeds `tolerance`; starts from `start`, or zero.
    """
    classes, width = labelled.counts.shape[1], labelled.vectors.shape[1]
    total = float(labelled.counts.sum(dtype=np.float64))
    whole = list(_transposed(labelled, mean, deviation)) if len(labelled.vectors) <= BLOCK else None
    basis = _Basis.of(labelled, mean, deviation, penalty)

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weight, bias = basis.unpacked(values)
        slope, slope_bias, cost = penalty * weight, torch.zeros(classes), 0.0
        for vectors, across, counts, numbers in whole or _transposed(labelled, mean, deviation):
            log_shares = torch.addmm(bias[:, None], weight, across).log_softmax(dim=0)
            cost -= float(log_shares.flatten() @ counts.flatten())
            residual = log_shares.exp_().mul_(numbers).sub_(counts).div_(total)
            slope.addmm_(residual, vectors)
            slope_bias += residual.sum(dim=1)
        cost = cost / total + penalty / 2 * float(weight.square().sum(dtype=torch.float64))
        return cost, basis.slope(slope, slope_bias)

    first = np.zeros(classes * (width + 1)) if start is None else basis.packed(*start)
    options = {"maxiter": 1000, "gtol": tolerance, "ftol": 0.0, "maxcor": 20}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    return basis.unpacked(found.x)


def _transposed(labelled: LabelledVectors, mean: Tensor, deviation: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield standardised vectors (n, D), their transpose (D, n), counts (C, n) and pixels (n,), in small blocks.

    Each of the two matrix products with the vectors is fast in one of the layouts only.
    """
    for vectors, counts in _standardised(labelled, mean, deviation):
        for few, known in zip(*(torch.split(one, PRODUCT_VECTORS) for one in (vectors, counts)), strict=True):
            yield few, few.T.contiguous(), known.T.contiguous(), known.sum(dim=1)


def _standardised(labelled: LabelledVectors, mean: Tensor, deviation: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for vectors, counts in labelled.blocks():
        yield vectors.sub(mean).div_(deviation), counts


def _validated_penalty(labelled: LabelledVectors, mean: Tensor, deviation: Tensor) -> float:
    """Select the penalty by mean IoU in cross-validation over images with FOLDS folds.

    Tries penalties from the largest down until a smaller one is worse. Returns the largest if there are fewer images
    than folds. Uses at most BLOCK vectors, evenly spaced. Cross entropy would favour larger penalties, which sacrifice
    rare classes.
    """
    step = -(-len(labelled.vectors) // BLOCK)
    if step > 1:
        labelled = labelled.where(np.arange(len(labelled.vectors)) % step == 0)
    images = np.unique(labelled.images)
    if len(images) < FOLDS:
        return PENALTIES[0]
    number = np.searchsorted(images, labelled.images) % FOLDS
    folds = [(labelled.where(number != fold), labelled.where(number == fold)) for fold in range(FOLDS)]
    starts: list[tuple[Tensor, Tensor] | None] = [None] * FOLDS
    best, largest = PENALTIES[0], -1.0
    for penalty in PENALTIES:
        confusion = torch.zeros(labelled.counts.shape[1], labelled.counts.shape[1], dtype=torch.float64)
        for fold, (others, left_out) in enumerate(folds):
            weight, bias = starts[fold] = _regression(others, mean, deviation, penalty, starts[fold], 4 * TOLERANCE)
            for vectors, counts in _standardised(left_out, mean, deviation):
                predicted = torch.addmm(bias, vectors, weight.T).max(dim=1).indices
                confusion.index_add_(0, predicted, counts.double())
        value = miou(confusion.round().long().T.numpy())
        if value < largest:
            break
        best, largest = (penalty, value) if value > largest else (best, largest)
    return best


def perceptron(width: int, hidden: tuple[int, ...], num_classes: int, dropout: float) -> nn.Sequential:
    """A perceptron of 1x1 convolutions: `width` channels, `hidden` units with ReLU and dropout after each, classes."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers, nn.Conv2d((width, *hidden)[-1], num_classes, 1))


class Mlp(nn.Module):
    """Perceptron of 1x1 convolutions (`MlpSpec`), with standardisation folded into its first layer."""

    def __init__(self, spec: MlpSpec, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers = perceptron(width, spec.hidden, num_classes, spec.dropout)

    @classmethod
    def fit(cls, spec: MlpSpec, labelled: LabelledVectors, num_classes: int, seed: int, stage: int) -> "Mlp":
        mean, deviation = labelled.standard()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "initialise", stage))
            head = cls(spec, labelled.vectors.shape[1], num_classes)
        head._train(labelled, mean, deviation, spec, lambda purpose: stream(seed, purpose, stage))
        first = cast(nn.Conv2d, head.layers[0])
        with torch.no_grad():
            first.weight /= deviation[:, None, None]
            first.bias -= first.weight[:, :, 0, 0] @ mean  # type: ignore[operator]
        return head.eval()

    @classmethod
    def of(cls, spec: MlpSpec, tensors: Mapping[str, Tensor]) -> "Mlp":
        names = sorted((int(name.split(".")[1]), name) for name in tensors if name.endswith("weight"))
        weights = [tensors[name] for _, name in names]  # safetensors may return them in any order
        head = cls(spec, weights[0].shape[1], len(weights[-1]))
        head.load_state_dict(dict(tensors))
        return head.eval()

    def _train(
        self,
        labelled: LabelledVectors,
        mean: Tensor,
        deviation: Tensor,
        spec: MlpSpec,
        stream_of: Callable[[str], np.random.Generator],
    ) -> None:
        layers = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        matrices = [layer.weight.detach()[:, :, 0, 0].clone().requires_grad_() for layer in layers]
        biases = [cast(Tensor, layer.bias) for layer in layers]
        optimizer = torch.optim.AdamW([*matrices, *biases], lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
        number = len(labelled.vectors)
        steps = spec.epochs * -(-number // spec.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order, masks = stream_of("order"), stream_of("dropout")
        for _ in range(spec.epochs):
            shuffled = order.permutation(number)
            for start in range(0, number, spec.batch_size):
                rows = np.sort(shuffled[start : start + spec.batch_size])  # reads a memory map in order
                counts = torch.from_numpy(labelled.counts[rows])
                hidden = torch.from_numpy(labelled.vectors[rows]).float().sub_(mean).div_(deviation)
                for matrix, bias in zip(matrices[:-1], biases[:-1], strict=True):
                    hidden = F.linear(hidden, matrix, bias).relu()
                    hidden = hidden * _kept(hidden.shape, spec.dropout, masks)
                log_shares = F.linear(hidden, matrices[-1], biases[-1]).log_softmax(dim=1)
                loss = -(log_shares * counts).sum() / counts.sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            for layer, matrix in zip(layers, matrices, strict=True):
                layer.weight.copy_(matrix[:, :, None, None])

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(features))


def _kept(shape: torch.Size, dropout: float, rng: np.random.Generator) -> Tensor:
    """Scaled dropout mask of this shape; NumPy draws it in a fifth of the time that torch takes."""
    kept = torch.from_numpy(rng.random(shape, dtype=np.float32)) >= dropout
    return kept.float().div_((1.0 - dropout) or 1.0)


class Knn(_Fitted):
    """k-nearest-neighbour vote (`KnnSpec`); logits are log shares of the votes."""

    def __init__(self, spec: KnnSpec, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        self._spec = spec

    @classmethod
    def fit(cls, spec: KnnSpec, labelled: LabelledVectors, num_classes: int, seed: int, stage: int) -> "Knn":
        mean, deviation = labelled.standard()
        known = torch.cat([F.normalize(vectors, dim=1) for vectors, _ in _standardised(labelled, mean, deviation)])
        shares = torch.from_numpy(labelled.counts / labelled.counts.sum(axis=1, keepdims=True))
        return cls(spec, known=known.half(), shares=shares, mean=mean, deviation=deviation)

    @classmethod
    def of(cls, spec: KnnSpec, tensors: Mapping[str, Tensor]) -> "Knn":
        return cls(spec, **tensors)

    def logits(self, vectors: Tensor) -> Tensor:
        known, shares = cast(Tensor, self.known).float(), cast(Tensor, self.shares)
        nearest = (self.directions(vectors) @ known.T).topk(min(self._spec.k, len(known)), dim=1)
        votes = ((nearest.values - 1) / self._spec.temperature).exp()
        found = (votes[:, :, None] * shares[nearest.indices]).sum(dim=1) / votes.sum(dim=1, keepdim=True)
        return found.clamp_(min=SMALLEST_SHARE).log_()


class Prototype(_Fitted):
    """Cosine similarity to class means (`PrototypeSpec`); -1 for a class without labelled pixels."""

    def __init__(self, spec: PrototypeSpec, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        self._spec = spec

    @classmethod
    def fit(
        cls, spec: PrototypeSpec, labelled: LabelledVectors, num_classes: int, seed: int, stage: int
    ) -> "Prototype":
        mean, deviation = labelled.standard()
        sums = torch.zeros(num_classes, labelled.vectors.shape[1])
        for vectors, counts in _standardised(labelled, mean, deviation):
            sums += counts.T @ F.normalize(vectors, dim=1)
        return cls(spec, means=F.normalize(sums, dim=1), mean=mean, deviation=deviation)

    @classmethod
    def of(cls, spec: PrototypeSpec, tensors: Mapping[str, Tensor]) -> "Prototype":
        return cls(spec, **tensors)

    def logits(self, vectors: Tensor) -> Tensor:
        means = cast(Tensor, self.means)
        similarity = (self.directions(vectors) @ means.T).masked_fill_((means == 0).all(dim=1), -1.0)
        return similarity / self._spec.temperature


HEADS: dict[str, type[PixelHead]] = {
    "linear": cast(type[PixelHead], Linear),
    "mlp": cast(type[PixelHead], Mlp),
    "knn": cast(type[PixelHead], Knn),
    "prototype": cast(type[PixelHead], Prototype),
}


def fit_head(spec: Any, labelled: LabelledVectors, *, num_classes: int, seed: int, stage: int) -> nn.Module:
    """Fit a head of this spec on the CPU, in one thread, so that results do not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        head = HEADS[spec.name].fit(spec, labelled, num_classes, seed, stage)
    finally:
        torch.set_num_threads(threads)
    return cast(nn.Module, head)


def head_of(spec: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Restore a fitted head of this spec from its ``state_dict``."""
    return cast(nn.Module, HEADS[spec.name].of(spec, tensors))
