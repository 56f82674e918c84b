"""The meta architecture: a GeneralizedRCNN that hands image-level labels to its ROI heads."""

from typing import Dict, List, Optional

import torch
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor


@META_ARCH_REGISTRY.register()
class LongTailRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` whose training input may hold ``image_labels``.

    ``image_labels`` is a dict of two int64 tensors of 0-based labels, ``positive`` and ``negative``, as
    :class:`~eql_d2.data.mapper.LongTailDatasetMapper` makes it. The ROI heads must be of this package.
    """

    def forward(self, batched_inputs: List[Dict]):
        """Same as ``GeneralizedRCNN.forward``."""
        if not self.training:
            return self.inference(batched_inputs)
        verified = verified_classes(batched_inputs, self.roi_heads.num_classes)
        verified = None if verified is None else verified.to(self.device, non_blocking=True)
        with self.roi_heads.image_labels(verified):
            return super().forward(batched_inputs)


def verified_classes(batched_inputs: List[Dict], num_classes: int) -> Optional[Tensor]:
    """Return bool ``[N, K]``: the classes in the positive or negative set of each image.

    ``None`` if no image has labels. An image without labels in a batch that has some verifies no class.
    """
    if not any("image_labels" in x for x in batched_inputs):
        return None
    verified = torch.zeros(len(batched_inputs), num_classes, dtype=torch.bool)
    for row, x in zip(verified, batched_inputs):
        for labels in x.get("image_labels", {}).values():
            row[labels] = True
    return verified
