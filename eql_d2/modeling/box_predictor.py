"""The box predictor: a classifier loss in the place of Detectron2's softmax, everything else inherited."""

from typing import Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Instances
from torch import Tensor, nn

from eql_d2.losses import ClassifierLoss
from eql_d2.losses.calibration import Calibration
from eql_d2.modeling.build import build_classifier_loss_from_config
from eql_d2.modeling.classifier_layer import ClassifierLayer, classifier_settings
from eql_d2.modeling.feature_memory import objects_of_regions
from eql_d2.modeling.frozen import is_frozen
from eql_d2.modeling.postprocessing import fast_rcnn_inference
from eql_d2.modeling.statistics import log_loss_statistics, statistics_are_due


class LongTailOutputLayers(ClassifierLayer, FastRCNNOutputLayers):
    """Detectron2's two linear layers with a :class:`~eql_d2.losses.ClassifierLoss` behind the classifier.

    The loss says how many logits there are, where their bias starts, and how they become scores.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        classifier_loss: ClassifierLoss,
        calibration: Optional[Calibration] = None,
        tau: float = 0.0,
        scale: str = "",
        normed: Optional[Dict[str, float]] = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ):
        """
        Args:
            input_shape: as in ``FastRCNNOutputLayers``.
            classifier_loss: the loss over the logits of ``kwargs["num_classes"]`` classes.
            calibration, tau, scale, normed: as of
                :meth:`~eql_d2.modeling.classifier_layer.ClassifierLayer.add_classifier`.
            train_on_pred_boxes: whether the ROI heads ask for the boxes of all classes in training.
            kwargs: arguments of ``FastRCNNOutputLayers``.

        Raises:
            InputError: for a normed classifier with ``tau``: its weights are equally long already.
        """
        super().__init__(input_shape, **kwargs)
        class_specific = self.bbox_pred.out_features > len(self.box2box_transform.weights)
        self.gather_deltas = class_specific and not train_on_pred_boxes
        # A new layer, even of the inherited width: its initial values must not depend on the width that is replaced.
        self.add_classifier(self.cls_score.in_features, classifier_loss, calibration, tau, scale, normed)
        nn.init.normal_(self.cls_score.weight, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape, stage: int = 0):
        """Read the config; ``stage`` is the predictor's place in a cascade."""
        return {
            **super().from_config(cfg, input_shape),
            "classifier_loss": build_classifier_loss_from_config(cfg),
            **classifier_settings(cfg, stage),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
        }

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the logits ``[R, num_logits]`` and the box deltas of region features ``[R, ...]``.

        In training with class-specific boxes the features ``[R, C]`` take the place of the ``[R, 4 K]`` deltas: only
        those of the ground-truth classes are needed, and :meth:`losses` computes only them.
        """
        x = torch.flatten(x, start_dim=1)
        return self.logits(x), x if self.training and self.gather_deltas else self.bbox_pred(x)

    def _deltas_of_gt_classes(self, x: Tensor, gt_classes: Tensor) -> Tensor:
        """Return ``[R, 4]``: each foreground region's deltas of its ground-truth class, zero for background.

        Same values and gradients as ``bbox_pred`` followed by a selection, without the ``R x 4 K`` products.

        Args:
            x: features ``[R, C]``.
            gt_classes: int64 ``[R]``.
        """
        foreground = torch.nonzero(gt_classes < self.num_classes).flatten()
        classes = gt_classes[foreground]
        weight = self.bbox_pred.weight.view(self.num_classes, -1, x.shape[1])[classes]  # [F, 4, C]
        bias = self.bbox_pred.bias.view(self.num_classes, -1)[classes]
        deltas = torch.baddbmm(bias.unsqueeze(2), weight, x[foreground].unsqueeze(2)).squeeze(2)
        return deltas.new_zeros(len(x), deltas.shape[1]).index_put((foreground,), deltas)

    def losses(self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]) -> Dict[str, Tensor]:
        """Return ``loss_cls`` (or the named parts that the classifier loss gives) and ``loss_box_reg``.

        The latter is left out in training where the regression is frozen.

        Args:
            predictions: logits ``[R, num_logits]`` and box deltas or features, as :meth:`forward` returns them.
            proposals: labelled proposals, one per image, together R regions. A field ``verified [R_i, K]`` is handed to
                the classifier loss.
        """
        logits, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals])
        losses = self.classification_losses(logits, proposals)
        if not (self.training and is_frozen(self.bbox_pred)):
            losses.update(self._weighted(loss_box_reg=self._regression_loss(deltas, proposals, gt_classes)))
        self._log(logits, gt_classes)
        return losses

    def _weighted(self, **losses: Tensor) -> Dict[str, Tensor]:
        return {name: value * self.loss_weight.get(name, 1.0) for name, value in losses.items()}

    def _regression_loss(self, deltas: Tensor, proposals: List[Instances], gt_classes: Tensor) -> Tensor:
        if self.training and self.gather_deltas:
            deltas = self._deltas_of_gt_classes(deltas, gt_classes)
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # Images without ground truth have no gt_boxes; all of their regions are background, so any box will do.
        gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        return self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)

    def classification_losses(self, logits: Tensor, proposals: List[Instances]) -> Dict[str, Tensor]:
        """Return ``loss_cls``, or the named parts that the classifier loss gives; arguments as of :meth:`losses`."""
        gt_classes = cat([p.gt_classes for p in proposals])
        has_verified = all(p.has("verified") for p in proposals)
        verified = cat([p.verified for p in proposals]) if has_verified else None
        extra = {"objects": objects_of_regions(proposals)} if self.classifier_loss.uses_objects else {}
        loss = self.classifier_loss(logits, gt_classes, verified, **extra)
        return self._weighted(**(loss if isinstance(loss, dict) else {"loss_cls": loss}))

    @torch.no_grad()
    def _log(self, logits: Tensor, gt_classes: Tensor) -> None:
        if not statistics_are_due():
            return
        # Scores, not logits: Detectron2 takes the last column for background, and only the scores have it there.
        _log_classification_stats(self.classifier_loss.scores(logits), gt_classes)
        log_loss_statistics(self.classifier_loss)

    def predict_probs(self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]) -> List[Tensor]:
        """Return the scores ``[R_i, K + 1]`` of each image; column K is background."""
        logits, _ = predictions
        return split_by_image(self.scores(logits), proposals)

    def inference(self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]):
        """Same as ``FastRCNNOutputLayers.inference``, by the exact top-k post-processing."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


def split_by_image(values: Tensor, proposals: List[Instances]) -> List[Tensor]:
    """Split ``[R, ...]`` into one tensor for each image; a trace, which is of one image, holds no lengths."""
    return [values] if len(proposals) == 1 else list(values.split([len(p) for p in proposals]))
