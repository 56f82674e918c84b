"""The meta architecture: a GeneralizedRCNN that hands image-level labels to its ROI heads."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import detector_postprocess
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances, ROIMasks
from torch import Tensor

from eql_d2.data.feature_cache import RegionFeatures
from eql_d2.errors import InputError
from eql_d2.modeling.frozen import cached_regions, losses_of_regions
from eql_d2.modeling.ignored import IgnoredRegions, LongTailRPN, ignored_threshold


@META_ARCH_REGISTRY.register()
class LongTailRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` whose training input may hold ``image_labels``, and whose masks need not be pasted.

    ``image_labels`` is a dict of two int64 tensors of 0-based labels, ``positive`` and ``negative``, as
    :class:`~eql_d2.data.mapper.LongTailDatasetMapper` makes it. The ROI heads must be of this package.

    It may hold ``ignored_boxes`` too: what lies in them is no background, for the RPN as for the ROI heads. With
    ``feature_file`` (:class:`~eql_d2.data.feature_cache.FeatureCacheMapper`) the part in front of the classifier, which
    is frozen, is computed once, image by image.

    At test time an image may say ``"paste_masks": False`` beside its ``height`` and ``width``: ``pred_masks`` is then
    the mask head's probabilities within the final boxes (``ROIMasks``) instead of a bool tensor ``[N, H, W]``.
    """

    @configurable
    def __init__(self, *, ignored_threshold: float = 0.5, **kwargs):
        """
        Args:
            ignored_threshold: of :class:`~eql_d2.modeling.ignored.IgnoredRegions`.
            kwargs: arguments of ``GeneralizedRCNN``.
        """
        super().__init__(**kwargs)
        self.ignored_threshold = ignored_threshold

    @classmethod
    def from_config(cls, cfg):
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LongTailRPN"
        return {**super().from_config(cfg), "ignored_threshold": ignored_threshold(cfg)}

    def forward(self, batched_inputs: List[Dict]):
        """Same as ``GeneralizedRCNN.forward``.

        Raises:
            InputError: for ``ignored_boxes`` where the proposal generator has no anchors to spare.
        """
        if not self.training:
            return self.inference(batched_inputs)
        verified = verified_classes(batched_inputs, self.roi_heads.num_classes)
        verified = None if verified is None else verified.to(self.device, non_blocking=True)
        ignored = IgnoredRegions.of_batch(batched_inputs, self.ignored_threshold, self.device)
        if "feature_file" in batched_inputs[0]:
            regions = [self._cached_regions(x) for x in batched_inputs]
            sizes = [x["image_size"] for x in batched_inputs]
            with self.roi_heads.image_labels(verified, ignored):
                return losses_of_regions(self.roi_heads, regions, sizes, self.device)
        with self._proposals_spare(ignored), self.roi_heads.image_labels(verified, ignored):
            return super().forward(batched_inputs)

    def _cached_regions(self, x: Dict[str, Any]) -> RegionFeatures:
        with self._proposals_spare(IgnoredRegions.of_batch([x], self.ignored_threshold, self.device)):
            return cached_regions(self, x)

    @contextmanager
    def _proposals_spare(self, ignored: Optional[IgnoredRegions]) -> Iterator[None]:
        if ignored is not None and not isinstance(self.proposal_generator, LongTailRPN):
            raise InputError(
                f"MODEL.LONG_TAIL.IGNORED needs MODEL.PROPOSAL_GENERATOR.NAME RPN, not "
                f"{type(self.proposal_generator).__name__}; or set IGNORED.BOXES [] and IGNORED.CROWD False."
            )
        self.proposal_generator.ignored = ignored
        try:
            yield
        finally:
            self.proposal_generator.ignored = None

    def inference(
        self,
        batched_inputs: List[Dict],
        detected_instances: Optional[List[Instances]] = None,
        do_postprocess: bool = True,
    ):
        """Same as ``GeneralizedRCNN.inference``, but for ``paste_masks``."""
        found = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return found
        return [{"instances": postprocess(*of_image)} for of_image in zip(found, batched_inputs)]


def postprocess(instances: Instances, x: Dict[str, Any]) -> Instances:
    """Bring the detections of an image to the size that its input asks for, masks pasted unless it says not to."""
    within_boxes = instances.has("pred_masks") and not x.get("paste_masks", True)
    if within_boxes:  # under a name that Detectron2 only carries along
        instances.roi_masks = ROIMasks(instances.pred_masks[:, 0])
        instances.remove("pred_masks")
    height, width = instances.image_size
    instances = detector_postprocess(instances, x.get("height", height), x.get("width", width))
    if within_boxes:
        instances.pred_masks = instances.roi_masks
        instances.remove("roi_masks")
    return instances


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
