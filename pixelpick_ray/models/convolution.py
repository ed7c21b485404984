"""A 3x3 convolution with a weight gradient that is fast on CPUs in channels-last format."""

import contextlib
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast: bilinear weights in bfloat16 would not sum to 1."""
    known = torch.amp.autocast_mode.is_autocast_available(device.type)  # the meta device, used for counting, has none
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


class Conv3x3(nn.Conv2d):
    """A size-preserving 3x3 convolution without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return conv3x3(input, self.weight)


def conv3x3(images: Tensor, weight: Tensor) -> Tensor:
    """Convolve images (N, C, H, W), zero-padded by 1, with a weight (K, C, 3, 3), to (N, K, H, W)."""
    if images.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return cast(Tensor, _Conv3x3.apply(images, weight))  # type: ignore[no-untyped-call]
    return F.conv2d(images, weight, padding=1)


class _Conv3x3(torch.autograd.Function):
    """The library's weight gradient takes three times as long in channels-last format as in channels-first."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        images, weight = ctx.saved_tensors
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(images.shape, weight, gradients[0], padding=1)  # type: ignore[no-untyped-call]
        return of_images, weight_gradient(images, gradients[0])


def weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Weight gradient (K, C, 3, 3) from images (N, C, H, W) and the gradient (N, K, H, W) of their convolution.

    With zero padding around the images, and as much after the gradient, each tap is a single matrix product: the pixels
    it reads are at a constant offset in memory from those it writes.
    """
    distances = [row * (images.shape[3] + 2) + column for row in range(3) for column in range(3)]
    taps = images.new_zeros(9, gradient.shape[1], images.shape[1])
    for image, upstream in zip(images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), strict=True):
        read = F.pad(image, (0, 0, 1, 1, 1, 1)).flatten(0, 1)
        written = F.pad(upstream, (0, 0, 0, 2, 0, 2)).flatten(0, 1)
        for tap, distance in zip(taps, distances, strict=True):
            tap.addmm_(written[: len(written) - distance].t(), read[distance:])
    return taps.permute(1, 2, 0).reshape(gradient.shape[1], images.shape[1], 3, 3)
