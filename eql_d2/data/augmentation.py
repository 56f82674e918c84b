"""Augmentation of whole batches of small images: random crop, flip, AutoAugment and Cutout on tensors.

A call for each image would cost more than the network's step: images that get the same operation are changed together.
"""

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms import functional as TF

from eql_d2.errors import InputError

#: The grey that AutoAugment fills in where it moves an image.
GREY = 128
#: Steps of a magnitude in AutoAugment's policies.
_LEVELS = 10
_SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}


@dataclass(frozen=True)
class BatchAugmentation:
    """Random changes of a batch of images, each image with its own draws, in the order of the attributes.

    Attributes:
        padding: zero pixels on each side before a random crop of the first size; 0 is off.
        flip: mirror one half of the images.
        policy: AutoAugment's (Cubuk et al., arXiv 1805.09501), one of :func:`policy_names`; empty for none. The table
            and the ranges are torchvision's; what moves into the image is grey (128), as in the paper's code.
        cutout: side in pixels of the square that is made black (DeVries and Taylor, arXiv 1708.04552), its centre
            uniform over the image, so that it may reach out of it; 0 is off.
    """

    padding: int = 0
    flip: bool = True
    policy: str = ""
    cutout: int = 0

    def __post_init__(self):
        if self.policy and self.policy not in policy_names():
            known = ", ".join(policy_names())
            raise InputError(f"MODEL.LONG_TAIL.CLASSIFICATION.AUTO_AUGMENT is {self.policy!r}; there are {known}.")
        for key in ("padding", "cutout"):
            if getattr(self, key) < 0:
                raise InputError(
                    f"MODEL.LONG_TAIL.CLASSIFICATION.{key.upper()} is {getattr(self, key)}; it must be at least 0."
                )

    def __call__(self, images: Tensor, generator: Optional[torch.Generator] = None) -> Tensor:
        """Return new images.

        Args:
            images: uint8 ``[N, 3, H, W]``; not changed.
            generator: of the random draws, on the CPU.
        """
        if self.padding:
            images = random_crop(images, self.padding, generator)
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        if self.policy:
            images = auto_augment(images, self.policy, generator)
        return cutout(images, self.cutout, generator) if self.cutout else images


def policy_names():
    """Return the names of AutoAugment's policies."""
    return tuple(policy.value for policy in AutoAugmentPolicy)


def random_crop(images: Tensor, padding: int, generator: Optional[torch.Generator] = None) -> Tensor:
    """Pad uint8 ``[N, C, H, W]`` with zeros and cut out H x W pixels at a random place of each image."""
    num_images, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, num_images, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    cropped = padded[torch.arange(num_images)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


def cutout(images: Tensor, side: int, generator: Optional[torch.Generator] = None) -> Tensor:
    """Make a square of each image ``[N, C, H, W]`` black: ``side`` pixels around a centre anywhere in the image."""
    num_images, _, height, width = images.shape
    outside = []
    for length in (height, width):
        first = torch.randint(0, length, (num_images, 1), generator=generator) - side // 2
        position = torch.arange(length)
        outside.append((position < first) | (position >= first + side))
    return images * (outside[0][:, None, :, None] | outside[1][:, None, None, :])


def auto_augment(images: Tensor, policy: str, generator: Optional[torch.Generator] = None) -> Tensor:
    """Change each image by a random sub-policy of AutoAugment: two operations, each with its probability.

    Args:
        images: uint8 ``[N, 3, H, W]``; not changed.
        policy: one of :func:`policy_names`.
        generator: of the random draws, on the CPU.
    """
    sub_policies = AutoAugment(AutoAugmentPolicy(policy)).policies
    images = images.clone()
    chosen = torch.randint(0, len(sub_policies), (len(images),), generator=generator)
    chance, sign = torch.rand(2, len(images), 2, generator=generator)
    for step in range(2):
        groups: Dict[Tuple[str, Optional[int], bool], List[int]] = {}
        for index, (which, probability, negative) in enumerate(
            zip(chosen.tolist(), chance[:, step].tolist(), (sign[:, step] < 0.5).tolist())
        ):
            name, least, level = sub_policies[which][step]
            if probability <= least:
                groups.setdefault((name, level, negative and name in _SIGNED), []).append(index)
        for (name, level, negative), members in groups.items():
            where = torch.tensor(members)
            images[where] = apply_operation(images[where], name, level, negative)
    return images


def apply_operation(images: Tensor, name: str, level: Optional[int], negative: bool = False) -> Tensor:
    """Apply one of AutoAugment's operations.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        name: as in torchvision's policies.
        level: 0 to 9 of the operation's range; ``None`` for operations without one.
        negative: turn the change round, for operations that have two directions.
    """
    share = 0.0 if level is None else level / (_LEVELS - 1)
    signed = -share if negative else share
    height, width = images.shape[-2:]
    if name.startswith("Shear"):
        degrees = math.degrees(math.atan(0.3 * signed))
        shear = [degrees, 0.0] if name == "ShearX" else [0.0, degrees]
        return TF.affine(images, 0.0, [0, 0], 1.0, shear, fill=[GREY] * 3, center=[0, 0])
    if name == "TranslateX":
        return _shift(images, int(150 / 331 * width * signed), 3)
    if name == "TranslateY":
        return _shift(images, int(150 / 331 * height * signed), 2)
    if name == "Rotate":
        return TF.rotate(images, 30 * signed, fill=[GREY] * 3)
    if name == "Brightness":
        return TF.adjust_brightness(images, 1 + 0.9 * signed)
    if name == "Color":
        return TF.adjust_saturation(images, 1 + 0.9 * signed)
    if name == "Contrast":
        return TF.adjust_contrast(images, 1 + 0.9 * signed)
    if name == "Sharpness":
        return TF.adjust_sharpness(images, 1 + 0.9 * signed)
    if name == "Posterize":
        return TF.posterize(images, 8 - round(4 * share))
    if name == "Solarize":
        return TF.solarize(images, 255 * (1 - share))
    if name == "AutoContrast":
        return TF.autocontrast(images)
    if name == "Equalize":
        return TF.equalize(images)
    if name == "Invert":
        return TF.invert(images)
    raise ValueError(f"AutoAugment has no operation {name!r}.")


def _shift(images: Tensor, pixels: int, dim: int) -> Tensor:
    """Move images by whole pixels along a dimension; what moves in is grey."""
    moved = torch.full_like(images, GREY)
    length = images.shape[dim] - abs(pixels)
    moved.narrow(dim, max(pixels, 0), length).copy_(images.narrow(dim, max(-pixels, 0), length))
    return moved
