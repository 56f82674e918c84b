"""A class-specific mask head that computes one mask per region instead of one per class.

Mask R-CNN's class-specific head predicts K masks for every region and uses one of them: that of the ground-truth class
in training, that of the predicted class at test time. With 1230 classes, the other 1229 are nearly all of its cost
(EQL's authors gave up class-specific masks for it, arXiv 2003.05176).
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from eql_d2.modeling.normed import NormedConv2d, check_not_normed, normed_settings


@ROI_MASK_HEAD_REGISTRY.register()
class LongTailMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's ``MaskRCNNConvUpsampleHead`` at the cost of its class-agnostic form, whatever the number of classes.

    The parameters, their names in a checkpoint and their gradients are the same. The last layer, a 1x1 convolution to K
    channels, is a product of its weight ``[K, C]`` with the features of every pixel; only the row of the class in
    question is taken from the weight, a different one for each region.

    A head for one class (``CLS_AGNOSTIC_MASK``, or a data set of one class) is left to Detectron2.
    """

    @configurable
    def __init__(self, input_shape, *, normed: Optional[Dict[str, float]] = None, **kwargs):
        """
        Args:
            input_shape: as in ``MaskRCNNConvUpsampleHead``.
            normed: temperature, power and eps of a normed last layer; ``None`` for Detectron2's.
            kwargs: arguments of ``MaskRCNNConvUpsampleHead``.
        """
        super().__init__(input_shape, **kwargs)
        if normed is not None:
            self.predictor = NormedConv2d(self.predictor.in_channels, self.predictor.out_channels, **normed)
            # As mmdetection's mask head.
            nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["normed"] = normed_settings(cfg, "MASK_PREDICTOR", "MASK_TEMPERATURE")
        return ret

    def forward(self, x: Tensor, instances: List[Instances]) -> Union[Dict[str, Tensor], List[Instances]]:
        """Compute the mask loss, or add the predicted masks. Regions of images without masks give no mask loss.

        Args:
            x: region features, float ``[R, C, H, W]``.
            instances: the R regions, image by image. With ``gt_classes``, ``proposal_boxes`` and, but for images of a
                source without masks, ``gt_masks`` in training, with ``pred_classes`` otherwise.

        Returns:
            ``{"loss_mask": scalar}`` in training; otherwise ``instances``, each with ``pred_masks``, probabilities
            ``[R_i, 1, H', W']``.
        """
        if self.training:
            x, instances = of_images_with_masks(x, instances)
        if self.predictor.out_channels == 1:
            return super().forward(x, instances)
        field = "gt_classes" if self.training else "pred_classes"
        classes = torch.cat([getattr(instances_per_image, field) for instances_per_image in instances])
        # Detectron2's functions take one channel for a class-agnostic prediction, and use it as it is.
        logits = self.class_logits(self.features(x), classes)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def features(self, x: Tensor) -> Tensor:
        """Apply all layers but the last: ``[R, C, H, W]`` to ``[R, C', H', W']``."""
        for layer in self:
            if layer is not self.predictor:
                x = layer(x)
        return x

    def class_logits(self, features: Tensor, classes: Tensor) -> Tensor:
        """Predict the mask of one class for each region.

        Args:
            features: ``[R, C', H', W']``, from :meth:`features`.
            classes: integer ``[R]`` in ``0..K-1``.

        Returns:
            Logits ``[R, 1, H', W']``.
        """
        classes = classes.to(torch.int64)
        weight = self.predictor.weight.flatten(1)
        if isinstance(self.predictor, NormedConv2d):
            weight, features = self.predictor.normalize_weight(weight), self.predictor.normalize_input(features)
        weight = weight.index_select(0, classes)
        # All sizes but the first as numbers: ONNX cannot work out one of them where there is no region.
        num_regions, (channels, height, width) = features.shape[0], map(int, features.shape[1:])
        pixels = features.reshape(num_regions, channels, height * width)
        logits = torch.bmm(weight.unsqueeze(1), pixels).reshape(num_regions, 1, height, width)
        if self.predictor.bias is not None:
            logits = logits + self.predictor.bias.index_select(0, classes).view(-1, 1, 1, 1).to(logits.dtype)
        return logits

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args, **kwargs) -> None:
        if not isinstance(self.predictor, NormedConv2d):
            check_not_normed(state_dict, f"{prefix}predictor", "MODEL.LONG_TAIL.MASK_PREDICTOR")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def of_images_with_masks(x: Tensor, instances: List[Instances]) -> Tuple[Tensor, List[Instances]]:
    """Return features ``[R, ...]`` and regions without those of images whose objects have no ``gt_masks``."""
    have_masks = [one.has("gt_masks") or len(one) == 0 for one in instances]
    if all(have_masks):
        return x, instances
    parts = x.split([len(one) for one in instances])
    x = torch.cat([part if kept else part[:0] for part, kept in zip(parts, have_masks)])
    return x, [one if kept else one[:0] for one, kept in zip(instances, have_masks)]
