"""The augmentation of batches of images: torchvision's operations, random crops, Cutout."""

import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import autoaugment as torchvision_autoaugment

from eql_d2.data.augmentation import (
    BatchAugmentation,
    apply_operation,
    auto_augment,
    cutout,
    policy_names,
    random_crop,
)


def batch_of(num_images=64, side=32):
    """Smooth images, so that a change of one grey value by rounding is all that two ways of resampling differ in."""
    coarse = torch.rand(num_images, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


@pytest.mark.parametrize("name", sorted(AutoAugment()._augmentation_space(10, (32, 32))))
def test_operations_are_torchvision_s(name):
    magnitudes, signed = AutoAugment()._augmentation_space(10, (32, 32))[name]
    images = batch_of(4)
    for level in (0, 4, 9):
        magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
        for sign in (1, -1) if signed else (1,):
            expected = torchvision_autoaugment._apply_op(
                images, name, sign * magnitude, InterpolationMode.NEAREST, [128.0] * 3
            )
            found = apply_operation(images, name, level if magnitudes.ndim else None, negative=sign < 0)
            assert (found.int() - expected.int()).abs().max() <= 1


def test_auto_augment_draws_operations_as_often_as_the_table_says(monkeypatch):
    sub_policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    probability = sum(p for pair in sub_policies for name, p, _ in pair if name == "TranslateY") / len(sub_policies)
    calls = {}

    def count(images, name, level, negative):
        calls[name] = calls.get(name, 0) + len(images)
        return images

    monkeypatch.setattr("eql_d2.data.augmentation.apply_operation", count)
    auto_augment(batch_of(20_000, side=1), "cifar10", torch.Generator().manual_seed(0))
    share = calls["TranslateY"] / 20_000
    assert abs(share - probability) < 4 * (probability / 20_000) ** 0.5


def test_random_crop_moves_whole_images():
    images = batch_of(200, side=8)
    cropped = random_crop(images, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2,) * 4)
    places = set()
    for image, source in zip(cropped, padded):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, source[:, top : top + 8, left : left + 8])
        ]
        assert found
        places.add(found[0])
    assert len(places) == 25


def test_cutout_is_one_square():
    images = torch.full((500, 3, 32, 32), 7, dtype=torch.uint8)
    cut = cutout(images, 16, torch.Generator().manual_seed(0))
    black = cut[:, 0] == 0
    assert torch.equal(cut == 0, black[:, None].expand_as(cut))
    for mask in black[:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert 8 <= rows.sum() <= 16
    # Uniform centres: half of them have the whole side inside, the others lose up to half.
    assert black.any(2).sum(1).float().mean() == pytest.approx(14, abs=0.3)


def test_augmentation_of_a_batch():
    images = batch_of(32)
    augment = BatchAugmentation(4, True, "cifar10", 16)
    first = augment(images, torch.Generator().manual_seed(3))
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(3)))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(images, batch_of(32))
    assert torch.equal(BatchAugmentation(0, False)(images), images)
    flipped = BatchAugmentation(0, True)(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images)]
    assert 4 < sum(mirrored) < 28
    assert "cifar10" in policy_names()
