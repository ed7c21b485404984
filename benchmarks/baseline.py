"""The frozen baseline: the original's computations, implemented plainly. It is kept running but never tuned.

Images are PNG files, decoded, augmented and normalised one by one on the CPU by Pillow, torchvision and SciPy; labels
are maps whose unlabelled pixels are ignored; networks are eager, in fp32 and NCHW, with full-size logits; every step
also computes the prediction for a progress display; images are queried and evaluated one by one, in NumPy. The
original's useless work, a second upsampling of an unused embedding, is left out.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from pixelpick_ray.config.model import ModelSpec
from pixelpick_ray.config.trial import AugmentSpec
from pixelpick_ray.data.dataset import DatasetFacts
from pixelpick_ray.models.backbones import build_pyramid


def conv_block(inputs: int, outputs: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class PlainDeepLab(nn.Module):
    """DeepLabv3+ with full-size logits, and parameters named as in the project's network."""

    def __init__(self, spec: ModelSpec, num_classes: int) -> None:
        super().__init__()
        pyramid = build_pyramid(spec)
        self.backbone = pyramid.network
        self.low_level = pyramid.level_at(4)
        rates, channels = [96 // spec.output_stride * step for step in (1, 2, 3)], pyramid.channels[-1]
        branches = [conv_block(channels, 256, 1), *(conv_block(channels, 256, 3, rate) for rate in rates)]
        self.aspp = nn.ModuleDict({"branches": nn.ModuleList(branches), "pooled": conv_block(channels, 256, 1)})
        self.aspp["project"] = conv_block(5 * 256, 256, 1)
        self.dropout = nn.Dropout(spec.dropout[0])
        self.low = conv_block(pyramid.channels[self.low_level], 48, 1)
        inner, last = nn.Dropout(spec.dropout[1]), nn.Dropout(spec.dropout[2])
        self.decoder = nn.Sequential(conv_block(304, 256, 3), inner, conv_block(256, 256, 3), last)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, H, W)."""
        features = self.backbone(images)
        deep, low = features[-1], self.low(features[self.low_level])
        pooled = self.aspp["pooled"](F.adaptive_avg_pool2d(deep, 1))
        joined = [branch(deep) for branch in self.aspp["branches"].children()]
        joined.append(F.interpolate(pooled, deep.shape[2:], mode="bilinear", align_corners=True))
        deep = self.dropout(self.aspp["project"](torch.cat(joined, dim=1)))
        deep = F.interpolate(deep, low.shape[2:], mode="bilinear", align_corners=True)
        logits = self.classifier(self.decoder(torch.cat([deep, low], dim=1)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


class PlainFPN(nn.Module):
    """Feature pyramid network that upsamples 128 channels of every level to full size and classifies their sum."""

    def __init__(self, spec: ModelSpec, num_classes: int) -> None:
        super().__init__()
        pyramid = build_pyramid(spec)
        self.backbone = pyramid.network
        self.laterals = nn.ModuleList([nn.Conv2d(channels, 256, 1) for channels in pyramid.channels[-4:]])
        self.branches = nn.ModuleList([self._branch(steps) for steps in (2, 3, 3, 3)])
        self.classifier = nn.Conv2d(128, num_classes, 1)

    @staticmethod
    def _branch(steps: int) -> nn.Sequential:
        blocks: list[nn.Module] = []
        for step in range(steps):
            conv = nn.Conv2d(128 if step else 256, 128, 3, padding=1)
            blocks.append(nn.Sequential(conv, nn.GroupNorm(32, 128), nn.ReLU()))
            blocks.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, C, H, W)."""
        features = self.backbone(images)[-4:]
        levels = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        for upper in (2, 1, 0):
            size = levels[upper].shape[2:]
            levels[upper] = levels[upper] + F.interpolate(levels[upper + 1], size, mode="bilinear", align_corners=False)
        full: list[Tensor] = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        logits: Tensor = self.classifier(full[0] + full[1] + full[2] + full[3])
        return logits


NETWORKS = {"deeplabv3plus": PlainDeepLab, "fpn": PlainFPN}


def plain_network(spec: ModelSpec, num_classes: int) -> nn.Module:
    """Build the plain network of a spec's architecture."""
    return NETWORKS[spec.architecture](spec, num_classes)


@dataclass(frozen=True)
class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Augmented, normalised images (3, h, w) from PNG files, with label maps (h, w) that are void where unlabelled.

    ``paths`` are (image, label map) files, ``labelled`` the corresponding masks (H, W) of labelled pixels.
    """

    paths: list[tuple[Path, Path]]
    labelled: list[npt.NDArray[np.bool_]]
    facts: DatasetFacts
    spec: AugmentSpec

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = read_pair(self.paths[index])
        pictures = [image, label, Image.fromarray(self.labelled[index].astype(np.uint8))]
        image, label, mask = self._place(pictures)
        image = self._colour(image)
        target = torch.from_numpy(np.asarray(label).astype(np.int64))
        target[torch.from_numpy(np.asarray(mask) == 0)] = self.facts.void_index
        return normalised(image, self.facts), target

    def _place(self, pictures: list[Any]) -> list[Any]:
        """Scale (bilinear for the image, nearest for maps), pad right and bottom, crop and flip at random."""
        width, height = pictures[0].size
        factor = random.uniform(*self.spec.scale)
        size = int(width * factor), int(height * factor)
        filters = [Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.NEAREST]
        pictures = [picture.resize(size, how) for picture, how in zip(pictures, filters, strict=True)]
        rows, columns = self.spec.crop_size or (height, width)
        border = (0, 0, max(0, columns - size[0]), max(0, rows - size[1]))
        fills: list[Any] = [tuple(int(255 * value) for value in self.facts.mean), self.facts.void_index, 0]
        pictures = [ImageOps.expand(picture, border, fill) for picture, fill in zip(pictures, fills, strict=True)]
        left = random.randint(0, pictures[0].width - columns)
        top = random.randint(0, pictures[0].height - rows)
        pictures = [picture.crop((left, top, left + columns, top + rows)) for picture in pictures]
        if random.random() < self.spec.hflip:
            pictures = [ImageOps.mirror(picture) for picture in pictures]
        return pictures

    def _colour(self, image: Any) -> Any:
        """Apply jitter, grayscale and blur, each at random."""
        jitter, blur = self.spec.jitter, self.spec.blur
        if jitter is not None and random.random() < jitter.probability:
            image = transforms.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)(image)
        image = transforms.RandomGrayscale(self.spec.grayscale)(image)
        if blur is not None and random.random() < blur.probability:
            sigma, reach = np.random.uniform(*blur.sigma), int(blur.kernel_fraction * min(image.size) // 2)
            pixels = np.asarray(image)
            image = gaussian_filter(pixels, sigma=(sigma, sigma, 0), radius=(reach, reach, 0), mode="mirror")
        return image


def read_pair(paths: tuple[Path, Path]) -> tuple[Any, Any]:
    """Open the image and label map of two PNG files."""
    return Image.open(paths[0]).convert("RGB"), Image.open(paths[1])


def normalised(image: Any, facts: DatasetFacts) -> Tensor:
    """Convert an image to floats (3, H, W), normalised by the data set's mean and standard deviation."""
    pixels: Tensor = transforms.functional.to_tensor(image)
    pixels = transforms.functional.normalize(pixels, list(facts.mean), list(facts.std))
    return pixels


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor, void: int
) -> tuple[Tensor, Tensor]:
    """Train on a batch with the mean cross entropy over pixels that are not void; return logits and loss."""
    optimizer.zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, target, ignore_index=void)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return logits.detach(), loss.detach()


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, facts: DatasetFacts, device: torch.device
) -> npt.NDArray[np.int64]:
    """Train an epoch like the original; return the confusion matrix (C, C) at the labelled pixels."""
    confusion = np.zeros((facts.num_classes, facts.num_classes), dtype=np.int64)
    for images, target in batches:
        logits, loss = plain_step(model, optimizer, images.to(device), target.to(device), facts.void_index)
        predicted = logits.softmax(dim=1).argmax(dim=1).cpu().numpy()
        confusion += count(target.numpy(), predicted, facts.num_classes)
        loss.item()
    return confusion


def margin_of(logits: Tensor) -> Tensor:
    """Difference (N, H, W) of the two largest probabilities, from logits (N, C, H, W); the smallest are queried."""
    best = logits.softmax(dim=1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


@torch.no_grad()
def query_image(
    model: nn.Module,
    paths: tuple[Path, Path],
    taken: npt.NDArray[np.bool_],
    facts: DatasetFacts,
    device: torch.device,
    *,
    pool_fraction: float,
    num_pixels: int,
) -> npt.NDArray[np.int64]:
    """Draw flat indices (num_pixels,) from the best-scoring pixels of an image that are neither void nor taken."""
    image, label = read_pair(paths)
    score = margin_of(model(normalised(image, facts)[None].to(device)))[0].cpu().numpy()
    score[taken | (np.asarray(label) == facts.void_index)] = 1.0
    best = np.argsort(score.reshape(-1))[: max(int(score.size * pool_fraction), num_pixels)]
    return np.random.choice(best, num_pixels, replace=False)


@torch.no_grad()
def evaluate_image(
    model: nn.Module, paths: tuple[Path, Path], facts: DatasetFacts, device: torch.device
) -> npt.NDArray[np.int64]:
    """Confusion matrix (C, C) of an image; rows are the truth."""
    image, label = read_pair(paths)
    predicted = model(normalised(image, facts)[None].to(device)).argmax(dim=1)[0].cpu().numpy()
    return count(np.asarray(label), predicted, facts.num_classes)


def count(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Counts (C, C) of pixels by truth and prediction, where the truth is a class."""
    valid = truth < classes
    flat = truth[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
