"""Augmentation: pictures as Pillow, torchvision and OpenCV make them; labelled pixels where their colour went."""

import math
from fractions import Fraction
from itertools import permutations, product

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

import pixelpick_ray.data.augment
from pixelpick_ray.config.trial import AugmentSpec, BlurSpec, JitterSpec
from pixelpick_ray.data.augment import JITTER_OPERATIONS, Draw, Geometry, augment, draw
from pixelpick_ray.data.streams import stream

pytestmark = pytest.mark.long

FILL = torch.tensor([0.25, 0.5, 0.75])
Size = tuple[int, int]


def noise(height: int, width: int, seed: int = 0, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def place(image: Tensor, geometry: Geometry) -> Tensor:
    """What `augment` makes of one image (3, H, W) with this geometry and no colours changed."""
    return augment(image[None], [Draw()], [geometry], None, FILL)[0]


def by_torchvision(image: Tensor, geometry: Geometry) -> Tensor:
    """Antialiased resize, padding right and bottom, crop, flip."""
    resized = reference.resize(image.double(), list(geometry.scaled), antialias=True).float()
    (top, left), (height, width) = geometry.offset, geometry.crop
    canvas = FILL[:, None, None].repeat(1, max(geometry.scaled[0], top + height), max(geometry.scaled[1], left + width))
    canvas[:, : geometry.scaled[0], : geometry.scaled[1]] = resized
    cropped = canvas[:, top : top + height, left : left + width]
    return cropped.flip(2) if geometry.flip else cropped


CROPS = [
    *(((36, 48), scale, (36, 48)) for scale in (1.0, 0.5, 0.11, 1.37, 2.0)),
    *(((36, 48), 0.731, (20, 30)), ((37, 23), 1.999, (31, 64)), ((37, 23), 0.9, (64, 11))),
    *(((9, 11), 3.3, (8, 8)), ((1, 7), 0.6, (4, 4))),
]


def test_pictures_are_resized_padded_cropped_and_flipped_as_by_torchvision() -> None:
    """Whatever stands beside them in a batch of larger ones."""
    for source, scale, crop in CROPS:
        image = noise(*source)[0]
        padded = torch.ones(3, source[0] + 7, source[1] + 5)
        padded[:, : source[0], : source[1]] = image
        for flip, (top, left) in product((False, True), ((0.0, 0.0), (0.999, 0.999), (0.5, 0.3))):
            geometry = Geometry.of(Draw(scale, top, left, flip), source, crop)
            assert (place(padded, geometry) - by_torchvision(image, geometry)).abs().max() < 1e-5, (source, scale, crop)


def test_rounding_makes_nothing_brighter_than_white() -> None:
    white = torch.ones(1, 3, 60, 80)
    for scale in (0.53, 0.61, 0.77, 1.19, 1.73):
        geometry = Geometry.of(Draw(scale), (60, 80), (60, 80))
        assert augment(white, [Draw()], [geometry], None, torch.ones(3)).max() == 1.0


def test_without_augmentation_pictures_stay_as_they_are_and_the_input_ever() -> None:
    images = noise(12, 16, count=2)
    before, choice = images.clone(), draw(None, stream(0, "a"))
    geometry = Geometry.of(choice, (12, 16), (12, 16))
    assert augment(images[:0], [], [], AugmentSpec(), FILL).shape[0] == 0
    result = augment(images, [choice] * 2, [geometry] * 2, None, FILL)
    assert torch.equal(result, images)
    result.zero_()
    everything = Draw(jitter=(("brightness", 1.5), ("hue", 0.1)), grayscale=True, blur_sigma=1.0)
    augment(images, [everything] * 2, [geometry] * 2, AugmentSpec(blur=BlurSpec()), FILL)
    assert torch.equal(images, before)


SIZE = st.tuples(st.integers(1, 12), st.integers(1, 12))
UNIT = st.floats(0, 1, exclude_max=True)
GEOMETRY = st.tuples(SIZE, SIZE, st.builds(Draw, st.floats(0.3, 3.0), UNIT, UNIT, st.booleans()))
Case = tuple[Size, Size, Draw]


def test_every_place_of_a_crop_is_equally_likely() -> None:
    rng = np.random.default_rng(0)
    offsets = [Geometry.of(Draw(top=rng.random()), (14, 10), (10, 10)).offset[0] for _ in range(5000)]
    counts = np.bincount(offsets)
    assert len(counts) == 5  # both ends are among them
    assert np.abs(counts - 1000).max() < 150


@given(GEOMETRY)
@example(((12, 11), (12, 11), Draw()))
@example(((5, 5), (6, 6), Draw(1.3)))
@example(((6, 6), (3, 3), Draw(1.5, 0.34, 0.99, True)))
@example(((9, 9), (4, 4), Draw(0.56, 0.0, 0.9)))  # centres exactly on the crop's edge
def test_every_pixel_whose_centre_is_in_the_crop_is_there_once_at_its_place(case: Case) -> None:
    """And the crop lies in the scaled picture or holds it whole."""
    source, crop, choice = case
    geometry = Geometry.of(choice, source, crop)
    for axis in (0, 1):
        assert geometry.scaled[axis] == max(1, math.floor(source[axis] * choice.scale))
        room = geometry.scaled[axis] - crop[axis]
        assert 0 <= geometry.offset[axis] <= room if room > 0 else geometry.offset[axis] == 0
    y, x = np.divmod(np.arange(source[0] * source[1], dtype=np.int32), source[1])
    positions, inside = geometry.points(y, x)
    assert positions.shape == (len(y), 2)
    for pixel, position, is_inside in zip(zip(y.tolist(), x.tolist(), strict=True), positions, inside, strict=True):
        axes = zip(pixel, geometry.scaled, source, geometry.offset, strict=True)
        centre = [Fraction(2 * at + 1, 2) * s / n - o for at, s, n, o in axes]
        assert is_inside == all(0 <= at < length for at, length in zip(centre, crop, strict=True))
        if is_inside:
            if choice.flip:
                centre[1] = crop[1] - centre[1]
            wanted = np.clip(np.asarray(centre, dtype=float) - 0.5, 0, np.asarray(crop) - 1)
            assert np.abs(wanted - position).max() < 1e-9


@given(GEOMETRY, st.integers(0, 2**32 - 1))
def test_resized_labels_are_those_of_the_labelled_pixels_in_the_resized_map(case: Case, seed: int) -> None:
    source, crop, choice = case
    geometry, rng = Geometry.of(choice, source, crop), np.random.default_rng(seed)
    label, mask = rng.integers(0, 9, source), rng.random(source) < 0.3
    place, found = geometry.resized_points(*np.nonzero(mask), label[mask])
    wanted = geometry.label_map(np.where(mask, label, -1), -1)
    assert place.tolist() == np.argwhere(wanted >= 0).tolist()
    assert found.tolist() == wanted[wanted >= 0].tolist()


@given(GEOMETRY)
def test_labels_are_those_of_the_pixel_that_a_centre_lies_in(case: Case) -> None:
    source, crop, choice = case
    geometry = Geometry.of(choice, source, crop)
    label = np.arange(source[0] * source[1], dtype=np.uint8).reshape(source)
    axes = zip(source, geometry.scaled, geometry.offset, crop, strict=True)
    rows, columns = ([(2 * at + 1) * n // (2 * s) for at in range(o, min(o + c, s))] for n, s, o, c in axes)
    wanted = np.full(crop, 255, dtype=np.uint8)
    wanted[: len(rows), : len(columns)] = label[np.ix_(rows, columns)]
    assert (geometry.label_map(label, 255) == (wanted[:, ::-1] if choice.flip else wanted)).all()


def blurred_by_opencv(image: Tensor, sigma: float, kernel_fraction: float) -> Tensor:
    """An image (3, H, W), H the shorter side."""
    size, array = int(kernel_fraction * image.shape[1] // 2 * 2 + 1), image.permute(1, 2, 0).numpy()
    blurred = cv2.GaussianBlur(array, (size, size), sigmaX=sigma, sigmaY=sigma, borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(blurred).permute(2, 0, 1)


@pytest.mark.parametrize("kernel_fraction", [0.1, 0.25, 0.5, 0.9])
def test_blur_is_that_of_opencv(kernel_fraction: float) -> None:
    images, spec = noise(36, 48, count=2), AugmentSpec(blur=BlurSpec(kernel_fraction=kernel_fraction))
    geometry = Geometry.of(Draw(), (36, 48), (36, 48))
    for sigma in (0.1, 0.5, 1.0, 2.0):
        blurred = augment(images, [Draw(blur_sigma=sigma), Draw()], [geometry] * 2, spec, FILL)
        assert (blurred[0] - blurred_by_opencv(images[0], sigma, kernel_fraction)).abs().max() < 1e-5
        assert torch.equal(blurred[1], images[1])


@pytest.mark.parametrize(("short_side", "kernel"), [(360, 37), (256, 25), (320, 33)])
def test_blur_kernels_are_those_of_the_original(short_side: int, kernel: int) -> None:
    """Protocol, augmentation step 6: CamVid 37, Cityscapes 25, VOC 33."""
    size = short_side, short_side + 8
    impulse = torch.zeros(1, 3, *size)
    impulse[..., size[0] // 2, size[1] // 2] = 1.0
    choice, spec = Draw(blur_sigma=1000.0), AugmentSpec(blur=BlurSpec(sigma=(1000.0, 1000.0)))
    blurred = augment(impulse, [choice], [Geometry.of(choice, size, size)], spec, FILL)[0, 0] > 0
    assert int(blurred.any(dim=0).sum()) == int(blurred.any(dim=1).sum()) == kernel


def test_blur_of_a_picture_as_small_as_the_kernel_keeps_its_mean() -> None:
    choice, spec = Draw(blur_sigma=2.0), AugmentSpec(blur=BlurSpec(kernel_fraction=1.0))
    for size in ((1, 1), (1, 7), (2, 5), (5, 2), (3, 3)):
        image = torch.full((1, 3, *size), 0.7)
        assert torch.allclose(augment(image, [choice], [Geometry.of(choice, size, size)], spec, FILL), image)


def by_torchvision_in_order(image: Tensor, choice: Draw) -> Tensor:
    """Jitter and grayscale of one image (3, H, W)."""
    for name, factor in choice.jitter:
        image = getattr(reference, f"adjust_{name}")(image, factor)
    return reference.rgb_to_grayscale(image, num_output_channels=3) if choice.grayscale else image


def coloured(images: Tensor, draws: list[Draw]) -> Tensor:
    """What `augment` makes of images that keep their size."""
    size = images.shape[2], images.shape[3]
    return augment(images, draws, [Geometry.of(Draw(), size, size)] * len(draws), None, FILL)


def in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU take a batch as a GPU does."""
    monkeypatch.setattr(pixelpick_ray.data.augment, "CPU_IMAGES", 1000)


FACTORS = dict.fromkeys(JITTER_OPERATIONS[:3], (0.0, 0.2, 1.0, 1.3, 1.8, 3.0))
FACTORS["hue"] = (-0.5, -0.2, -1 / 6, 0.0, 0.05, 1 / 3, 0.5)


@pytest.mark.parametrize("name", FACTORS)
def test_each_colour_change_is_that_of_torchvision(name: str) -> None:
    """Also on colours of which two or three channels are equal, and on dark, pale and nearly gray ones."""
    levels = torch.tensor([0.0, 1e-7, 0.25, 0.5, 0.5000001, 0.75, 1.0])
    corners = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 7, 49)
    images = corners, noise(7, 49)[0], noise(7, 49)[0] * 0.01, 0.99 + noise(7, 49)[0] * 0.01
    for image, factor in product(images, FACTORS[name]):
        choice = Draw(jitter=((name, factor),))
        found = coloured(image[None], [choice])[0]
        assert (found - by_torchvision_in_order(image, choice)).abs().max() < 2e-6
        assert 0.0 <= found.min() <= found.max() <= 1.0


def test_colour_comes_after_geometry_in_any_order_and_blur_last() -> None:
    """So the padding takes part in the colour change, and the blur in the colours."""
    factors = {"contrast": 1.8, "hue": 0.2, "brightness": 1.3, "saturation": 0.5}
    for order in permutations(factors.items()):
        choice = Draw(0.5, jitter=order, grayscale=order[0][0] == "hue", blur_sigma=1.5)
        image, geometry = noise(20, 24)[0], Geometry.of(choice, (20, 24), (20, 24))
        found = augment(image[None], [choice], [geometry], AugmentSpec(blur=BlurSpec(kernel_fraction=0.4)), FILL)[0]
        wanted = blurred_by_opencv(by_torchvision_in_order(by_torchvision(image, geometry), choice), 1.5, 0.4)
        assert (found - wanted).abs().max() < 1e-4


FULL = AugmentSpec(jitter=JitterSpec(), grayscale=0.2, blur=BlurSpec())


def full_batch(count: int, seed: int = 0) -> tuple[Tensor, list[Draw], list[Geometry]]:
    """Images of different sizes with everything drawn for them, one of them with nothing."""
    images = torch.zeros(count, 3, 40, 52)
    draws = [draw(FULL, stream(seed, index)) for index in range(count - 1)] + [Draw()]
    sizes = [(40 - index % 3, 52 - index % 5) for index in range(count - 1)] + [(36, 48)]
    for index, (height, width) in enumerate(sizes):
        images[index, :, :height, :width] = noise(height, width, seed=index)[0]
    return images, draws, [Geometry.of(choice, size, (36, 48)) for choice, size in zip(draws, sizes, strict=True)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_in_one_go_equals_its_images_one_by_one(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [full_batch(7, seed) for seed in range(4)]
    one_by_one = [augment(*batch, FULL, FILL) for batch in batches]
    in_one_go(monkeypatch)
    for (images, draws, geometries), on_cpu in zip(batches, one_by_one, strict=True):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        together = augment(images, draws, geometries, FULL, FILL)
        assert together.shape == (7, 3, 36, 48)
        assert (together - on_cpu).abs().max() < 2e-6
        for one in (slice(index, index + 1) for index in range(7)):
            alone = augment(images[one], draws[one], geometries[one], FULL, FILL)
            assert (together[one] - alone).abs().max() < 2e-6
        assert torch.equal(together[6], images[6, :, :36, :48])


def test_the_host_reads_nothing_back_from_the_device() -> None:
    """Tensors on the meta device have no values, so whoever asks for one fails."""
    images, draws, geometries = full_batch(5)
    result = augment(images.to("meta"), draws, geometries, FULL, FILL.to("meta"))
    assert (result.device.type, result.shape) == ("meta", (5, 3, 36, 48))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pictures_and_nothing_waits_for_it() -> None:
    images, draws, geometries = full_batch(9)
    there, fill = images.cuda(), FILL.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(there, draws, geometries, FULL, fill)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.cpu() - augment(images, draws, geometries, FULL, FILL)).abs().max() < 1e-4


def test_draws_have_the_asked_distributions() -> None:
    rng = stream(0, "many")
    draws = [draw(FULL, rng) for _ in range(4000)]
    choices = np.asarray([[one.flip, bool(one.jitter), one.grayscale, one.blur_sigma is not None] for one in draws])
    assert choices.mean(axis=0) == pytest.approx([0.5, 0.8, 0.2, 0.5], abs=0.03)
    correlation = np.corrcoef(choices.T.astype(float)) - np.eye(4)
    assert np.abs(correlation).max() < 0.06
    scales = np.asarray([choice.scale for choice in draws])
    assert (scales.min(), scales.max(), scales.mean()) == pytest.approx((0.5, 2.0, 1.25), abs=0.03)
    sigmas = np.asarray([choice.blur_sigma for choice in draws if choice.blur_sigma is not None])
    assert (sigmas.min(), sigmas.max(), sigmas.mean()) == pytest.approx((0.1, 2.0, 1.05), abs=0.05)
    jitters = [choice.jitter for choice in draws if choice.jitter]
    orders = [tuple(name for name, _ in jitter) for jitter in jitters]
    assert len(set(orders)) == 24
    assert all(sorted(order) == sorted(JITTER_OPERATIONS) for order in orders)
    for name in JITTER_OPERATIONS:
        factors = np.asarray([dict(jitter)[name] for jitter in jitters])
        limits = (-0.2, 0.2) if name == "hue" else (0.2, 1.8)
        assert (factors.min(), factors.max()) == pytest.approx(limits, abs=0.02)


def test_probabilities_zero_and_one_are_never_and_always_and_a_strength_of_zero_leaves_its_operation_out() -> None:
    for always in (False, True):
        chance = float(always)
        jitter, blur = JitterSpec(probability=chance), BlurSpec(probability=chance)
        spec = AugmentSpec(scale=(1.0, 1.0), hflip=chance, jitter=jitter, grayscale=chance, blur=blur)
        for choice in (draw(spec, stream(index)) for index in range(200)):
            assert (choice.scale, choice.flip, choice.grayscale) == (1.0, always, always)
            assert (len(choice.jitter), choice.blur_sigma is not None) == (4 * always, always)
    spec = AugmentSpec(jitter=JitterSpec(probability=1.0, brightness=0.0, contrast=2.0, saturation=0.0, hue=0.0))
    changes = [change for index in range(200) for change in draw(spec, stream(index)).jitter]
    assert {name for name, _ in changes} == {"contrast"}
    assert min(factor for _, factor in changes) >= 0.0
    assert 2.5 < max(factor for _, factor in changes) <= 3.0


def test_draws_are_those_of_this_version() -> None:
    """Stored results were made with these choices."""
    choice = draw(FULL, stream(0, "augment", 0, 1, "a.png"))
    assert (choice.flip, choice.grayscale) == (False, True)
    assert [name for name, _ in choice.jitter] == ["contrast", "saturation", "brightness", "hue"]
    numbers = [choice.scale, choice.top, choice.left, *(factor for _, factor in choice.jitter), choice.blur_sigma]
    assert numbers == pytest.approx(
        [
            *(1.9090328571525852, 0.35453923905978546, 0.06563776812587563, 1.7115460630971575, 1.3354415077447088),
            *(1.248762168925474, 0.04374188264255871, 1.0738566150270106),
        ],
        abs=1e-12,
    )
