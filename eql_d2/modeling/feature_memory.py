"""Memory-augmented feature sampling (LOCE): region features of earlier images as further regions of a training step."""

import itertools
from collections import deque
from typing import Callable, Deque, Dict, List, NamedTuple, Optional

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from eql_d2.errors import InputError

#: Signs of the shifts of the four sides of a box: 16 boxes around each object.
SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))


class _Region(NamedTuple):
    feature: Tensor  # [C, h, w]
    box: Tensor  # [4], of the region
    gt_box: Tensor  # [4], of its object


class FeatureMemory:
    """The last region features of each class, and draws from them (Feng et al., arXiv 2108.07507, section 3.3).

    Around each object of a training image 16 boxes are pooled, each of whose sides is moved by up to ``jitter`` of the
    box's width or height. Their features, without a gradient, are kept on the CPU: ``size`` of each class, of this
    process. They are in no checkpoint; a training that goes on fills them anew.

    Args:
        size: features of each class that are kept, the last ones.
        num_draws: classes that are drawn for a step, with replacement.
        num_features: features that are drawn of such a class, with replacement.
        jitter: largest shift of a side.

    Raises:
        InputError: if a number is below 1 or the jitter is not in [0, 0.5), where a box could turn inside out.
    """

    def __init__(self, size: int, num_draws: int, num_features: int, jitter: float):
        for key, value in (("SIZE", size), ("DRAWS", num_draws), ("FEATURES", num_features)):
            if value < 1:
                raise InputError(f"MODEL.LONG_TAIL.FEATURE_MEMORY.{key} is {value}; it must be at least 1.")
        if not 0 <= jitter < 0.5:
            raise InputError(f"MODEL.LONG_TAIL.FEATURE_MEMORY.JITTER is {jitter}; it lies in [0, 0.5).")
        self.size, self.num_draws, self.num_features, self.jitter = size, num_draws, num_features, jitter
        self._regions: Dict[int, Deque[_Region]] = {}

    @torch.no_grad()
    def put(self, targets: List[Instances], pool: Callable[[List[Boxes]], Tensor]) -> None:
        """Take in what is around the objects of a batch.

        Args:
            targets: ground truth of each image.
            pool: from boxes of each image to region features ``[R, C, h, w]``.
        """
        boxes = [self._around(target) for target in targets]
        features = pool(boxes).detach().cpu()
        gt_boxes = torch.cat([target.gt_boxes.tensor for target in targets]).repeat_interleave(len(SIGNS), dim=0).cpu()
        classes = torch.cat([target.gt_classes for target in targets]).repeat_interleave(len(SIGNS)).tolist()
        for label, *region in zip(classes, features, torch.cat([b.tensor for b in boxes]).cpu(), gt_boxes):
            # A copy: a row of the batch would keep the whole batch in memory.
            kept = self._regions.setdefault(label, deque(maxlen=self.size))
            kept.append(_Region(*(part.clone() for part in region)))

    def _around(self, target: Instances) -> Boxes:
        """Return the 16 boxes around each object of an image, those of one object side by side."""
        boxes = target.gt_boxes.tensor
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2).unsqueeze(1)
        shift = SIGNS.to(boxes) * torch.rand(len(boxes), len(SIGNS), 4).to(boxes) * self.jitter * side
        around = Boxes((boxes.unsqueeze(1) + shift).flatten(0, 1))
        around.clip(target.image_size)
        return around

    def draw(self, weight: Tensor) -> List[Instances]:
        """Return the regions of one step as the proposals of one more image, with their ``features``; at most one.

        Args:
            weight: ``[K]``, what the chance of each class is proportional to. A class without features gives none.
        """
        regions: List[_Region] = []
        classes: List[int] = []
        for label in torch.multinomial(weight.cpu(), self.num_draws, replacement=True).tolist():
            kept = self._regions.get(label)
            if kept:
                regions += [kept[i] for i in torch.randint(len(kept), (self.num_features,)).tolist()]
                classes += [label] * self.num_features
        if not regions:
            return []
        drawn = Instances((0, 0))
        drawn.features = torch.stack([region.feature for region in regions])
        drawn.proposal_boxes = Boxes(torch.stack([region.box for region in regions]))
        drawn.gt_boxes = Boxes(torch.stack([region.gt_box for region in regions]))
        drawn.gt_classes = torch.tensor(classes)
        # The regions of a class are one observation of its mean score, not those of an object.
        drawn.object_keys = drawn.gt_classes.unsqueeze(1)
        return [drawn.to(weight.device)]


def objects_of_regions(proposals: List[Instances]) -> Tensor:
    """Return for each of R regions the first region of the same image and object, int64 ``[R]``.

    The object of a region is told by its class and the field ``object_keys [R_i, n]``, or ``gt_boxes`` where there is
    none. So no object needs a number of its own, and nothing waits for the device.
    """
    objects: List[Tensor] = []
    start = 0
    for of_image in proposals:
        keys: Optional[Tensor] = None
        if of_image.has("object_keys"):
            keys = of_image.object_keys
        elif of_image.has("gt_boxes"):
            keys = of_image.gt_boxes.tensor
        if keys is None:
            first = torch.arange(len(of_image), device=of_image.gt_classes.device)
        else:
            keys = torch.cat([keys, of_image.gt_classes.unsqueeze(1).to(keys)], dim=1)
            first = (keys.unsqueeze(1) == keys.unsqueeze(0)).all(2).int().argmax(1)
        objects.append(start + first)
        start += len(of_image)
    return torch.cat(objects)
