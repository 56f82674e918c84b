"""One-stage detectors: RetinaNet with any loss of independent columns, and the improved baseline of the EFL paper."""

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss
from torch import Tensor, nn

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, ClassifierLoss
from eql_d2.losses.state import mean_count_over_ranks
from eql_d2.modeling.assignment import atss
from eql_d2.modeling.build import build_classifier_loss_from_config, check_plain
from eql_d2.modeling.ignored import IgnoredRegions, ignored_threshold
from eql_d2.modeling.postprocessing import traced_nms
from eql_d2.modeling.rcnn import verified_classes
from eql_d2.modeling.statistics import log_loss_statistics, statistics_are_due

ASSIGNMENTS = ("iou", "atss")
#: Scores that inference looks at together; bounds the memory, not the result.
SCORES_AT_ONCE = 1 << 22


class LongTailRetinaNetHead(RetinaNetHead):
    """``RetinaNetHead`` whose classifier starts at the loss's bias; also with a quality branch.

    Args:
        classifier_loss: gives the number of columns and the initial bias.
        with_quality: predict the overlap (IoU) of each anchor's box with its object, one logit for each anchor.
        **kwargs: as for ``RetinaNetHead``.
    """

    @configurable
    def __init__(self, *, classifier_loss: ClassifierLoss, with_quality: bool = False, **kwargs):
        super().__init__(**kwargs)
        with torch.no_grad():
            bias = classifier_loss.initial_bias()
            self.cls_score.bias.copy_(bias.repeat(len(self.cls_score.bias) // len(bias)))
        self.quality_pred: Optional[nn.Conv2d] = None
        if with_quality:
            channels, num_anchors = self.bbox_pred.in_channels, self.bbox_pred.out_channels // 4
            self.quality_pred = nn.Conv2d(channels, num_anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.quality_pred.weight, std=0.01)
            nn.init.zeros_(self.quality_pred.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec], classifier_loss: ClassifierLoss):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RETINANET.NUM_CLASSES = classifier_loss.num_classes
        settings = super().from_config(cfg, input_shape)
        with_quality = cfg.MODEL.LONG_TAIL.RETINANET.QUALITY
        return {**settings, "classifier_loss": classifier_loss, "with_quality": with_quality}

    def forward(self, features: List[Tensor]) -> List[List[Tensor]]:
        """Same as ``RetinaNetHead.forward``, with the quality logits of each level, ``[N, A, H, W]``, if it has any."""
        logits, deltas, quality = [], [], []
        for feature in features:
            logits.append(self.cls_score(self.cls_subnet(feature)))
            of_boxes = self.bbox_subnet(feature)
            deltas.append(self.bbox_pred(of_boxes))
            if self.quality_pred is not None:
                quality.append(self.quality_pred(of_boxes))
        return [logits, deltas, quality] if quality else [logits, deltas]


@META_ARCH_REGISTRY.register()
class LongTailRetinaNet(RetinaNet):
    """``RetinaNet`` with a classifier loss of this package.

    Any loss serves whose columns are the K classes alone, each a probability of its own. The number of classes is
    ``MODEL.ROI_HEADS.NUM_CLASSES``, as in every architecture of this package. The sum over anchors and classes is
    divided by the number of positive anchors, averaged over the ranks (Detectron2: a running mean of one rank's).

    ``MODEL.LONG_TAIL.RETINANET`` makes of it the improved baseline of Equalized focal loss (arXiv 2201.02593): ATSS
    assignment, and a quality branch, which predicts the IoU of each box, weights the box loss (GIoU) and multiplies the
    scores. Group norm, anchors and the box loss are Detectron2's own keys.

    Args:
        classifier_loss: of K columns.
        assignment: "iou" (``MODEL.RETINANET.IOU_THRESHOLDS``) or "atss".
        atss_topk: candidates of an object on each level.
        ignored_threshold: of :class:`~eql_d2.modeling.ignored.IgnoredRegions`; an anchor that lies in one is no
            background.
        **kwargs: as for ``RetinaNet``.

    Raises:
        InputError: for a loss that has other columns than the K classes, or another assignment.
    """

    @configurable
    def __init__(
        self,
        *,
        classifier_loss: ClassifierLoss,
        assignment: str = "iou",
        atss_topk: int = 9,
        ignored_threshold: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_loss(classifier_loss)
        if assignment not in ASSIGNMENTS:
            known = " and ".join(map(repr, ASSIGNMENTS))
            raise InputError(f"MODEL.LONG_TAIL.RETINANET.ASSIGNMENT is {assignment!r}; there are {known}.")
        self.classifier_loss = classifier_loss
        self.assignment, self.atss_topk = assignment, atss_topk
        self.ignored_threshold = ignored_threshold
        self._verified: Optional[Tensor] = None
        self._ignored: Optional[IgnoredRegions] = None

    @classmethod
    def from_config(cls, cfg):
        check_plain(cfg, cls.__name__)
        classifier_loss = build_classifier_loss_from_config(cfg)
        _check_loss(classifier_loss)
        settings = super().from_config(cfg)
        shapes = settings["backbone"].output_shape()
        node = cfg.MODEL.LONG_TAIL.RETINANET
        settings["head"] = LongTailRetinaNetHead(
            cfg, [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES], classifier_loss
        )
        settings["num_classes"] = classifier_loss.num_classes
        return {
            **settings,
            "classifier_loss": classifier_loss,
            "assignment": node.ASSIGNMENT,
            "atss_topk": node.ATSS_TOPK,
            "ignored_threshold": ignored_threshold(cfg),
        }

    def forward(self, batched_inputs: List[Dict]):
        """Same as ``RetinaNet.forward``; training input may hold ``image_labels`` and ``ignored_boxes``, as for
        :class:`~eql_d2.modeling.rcnn.LongTailRCNN`."""
        if self.training:
            verified = verified_classes(batched_inputs, self.num_classes)
            self._verified = None if verified is None else verified.to(self.device, non_blocking=True)
            self._ignored = IgnoredRegions.of_batch(batched_inputs, self.ignored_threshold, self.device)
        return super().forward(batched_inputs)

    def forward_training(self, images, features, predictions, gt_instances):
        """Return ``loss_cls``, ``loss_box_reg`` and, with a quality branch, ``loss_quality``."""
        dims = [self.num_classes, 4, 1][: len(predictions)]
        # Each level's own copy is freed once all are joined: the logits of all anchors are what memory is spent on.
        joined = []
        for levels, dim in zip(predictions, dims):
            joined.append(cat([permute_to_N_HWA_K(level, dim) for level in levels], dim=1))
        logits, deltas, *quality = joined
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = (torch.stack(x) for x in self.label_anchors(anchors, gt_instances))
        is_positive = (gt_labels >= 0) & (gt_labels != self.num_classes)
        num_positive = is_positive.sum().double()
        normalizer = mean_count_over_ranks(num_positive, self.training).to(logits.dtype)
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(gt_labels))
        if not quality:
            losses = {"loss_box_reg": self._plain_box_loss(anchors, deltas, gt_boxes, is_positive) / normalizer}
            target = None
        else:
            losses, target = self._quality_losses(anchors, deltas, quality[0], gt_boxes, is_positive, normalizer)
        return {"loss_cls": self._classification_loss(logits, gt_labels, target, normalizer), **losses}

    def _classification_loss(
        self, logits: Tensor, gt_labels: Tensor, quality: Optional[Tensor], normalizer: Tensor
    ) -> Tensor:
        """Return the loss of all anchors.

        Args:
            logits: ``[N, R, K]``.
            gt_labels: int64 ``[N, R]``, K for background, -1 for ignored anchors.
            quality: ``[N, R]``, or ``None`` without a quality branch.
            normalizer: positive anchors, averaged over the ranks.
        """
        has_ignored = self.assignment == "iou" or self._ignored is not None
        # For all anchors and classes: made only for a loss that looks at it.
        verified = self._verified if self.classifier_loss.uses_verified else None
        if verified is not None:
            verified = verified.unsqueeze(1).expand(-1, logits.shape[1], -1).flatten(0, 1)
        extra = {"quality": quality.flatten()} if quality is not None and self.classifier_loss.uses_quality else {}
        loss = self.classifier_loss(logits.flatten(0, 1), gt_labels.flatten(), verified, has_ignored, **extra)
        if statistics_are_due():
            log_loss_statistics(self.classifier_loss)
        if self.classifier_loss.divides_by_foreground:
            return loss
        num_regions = (gt_labels >= 0).sum() if has_ignored else gt_labels.numel()
        return loss * (num_regions / normalizer)

    def _plain_box_loss(self, anchors: List[Boxes], deltas: Tensor, gt_boxes: Tensor, is_positive: Tensor) -> Tensor:
        """Return Detectron2's box loss, ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``, summed over the positive anchors."""
        return _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            [deltas],
            list(gt_boxes),
            is_positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )

    def _quality_losses(
        self,
        anchors: List[Boxes],
        deltas: Tensor,
        quality: Tensor,
        gt_boxes: Tensor,
        is_positive: Tensor,
        normalizer: Tensor,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Return the losses of boxes and quality, and the quality of each anchor, ``[N, R]``: its box's IoU, or 0.

        GIoU of each positive anchor's box, weighted by the IoU and divided by the sum of the IoUs, averaged over the
        ranks; binary cross-entropy of the quality logit with the IoU as target, divided as the classification loss.
        """
        image, index = is_positive.nonzero(as_tuple=True)
        of_anchors = Boxes.cat(anchors).tensor[index]
        boxes = self.box2box_transform.apply_deltas(deltas[image, index], of_anchors)
        targets = gt_boxes[image, index]
        with torch.no_grad():
            iou = _iou_of_pairs(boxes, targets)
            total = mean_count_over_ranks(iou.sum(), self.training)
        of_boxes = (giou_loss(boxes, targets, reduction="none") * iou).sum() / total
        of_quality = F.binary_cross_entropy_with_logits(quality[image, index, 0], iou, reduction="sum") / normalizer
        target = quality.new_zeros(is_positive.shape)
        target[image, index] = iou
        return {"loss_box_reg": of_boxes, "loss_quality": of_quality}, target

    @torch.no_grad()
    def label_anchors(self, anchors: List[Boxes], gt_instances: List[Instances]) -> Tuple[List[Tensor], List[Tensor]]:
        """Same as ``RetinaNet.label_anchors``, by ATSS if asked for, which leaves no anchor out; anchors that are no
        object's and lie in an ignored region are left out either way."""
        label = super().label_anchors if self.assignment == "iou" else self._label_by_atss
        labels, boxes = label(anchors, gt_instances)
        if self._ignored is not None:
            joined = Boxes.cat(anchors)
            for image, of_image in enumerate(labels):
                of_image[self._ignored.cover(image, joined) & (of_image == self.num_classes)] = -1
        return labels, boxes

    def _label_by_atss(self, anchors: List[Boxes], gt_instances: List[Instances]) -> Tuple[List[Tensor], List[Tensor]]:
        labels, boxes = [], []
        for of_image in gt_instances:
            index, assigned = atss(anchors, of_image.gt_boxes, self.atss_topk)
            if len(of_image):
                labels.append(torch.where(assigned, of_image.gt_classes[index], self.num_classes))
                boxes.append(of_image.gt_boxes.tensor[index])
            else:
                labels.append(torch.full_like(index, self.num_classes))
                boxes.append(of_image.gt_boxes.tensor.new_zeros(len(index), 4))
        return labels, boxes

    def forward_inference(self, images, features, predictions) -> List[Instances]:
        """Return the detections of each image.

        Same as ``RetinaNet.forward_inference`` but that no copy of the scores of all anchors and classes is made: on
        each level the best ``MODEL.RETINANET.TOPK_CANDIDATES_TEST`` above the threshold are found piece by piece.
        """
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            levels = [
                self._level_candidates(of_level, *(prediction[level][i] for prediction in predictions))
                for level, of_level in enumerate(anchors)
            ]
            scores, classes, boxes = (torch.cat(parts) for parts in zip(*levels))
            if torch.jit.is_tracing():
                # Boxes may lie outside of the image; the zeros are for an image without any.
                corners = torch.cat([boxes, boxes.new_zeros(1, 4)])
                extent = corners.max() - corners.min() + 1
                keep = traced_nms(boxes, scores, classes, self.num_classes, extent, self.test_nms_thresh)
            else:
                keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
            keep = keep[: self.max_detections_per_image]
            result = Instances(image_size)
            result.pred_boxes, result.scores, result.pred_classes = Boxes(boxes[keep]), scores[keep], classes[keep]
            results.append(result)
        return results

    def inference(self, batched_inputs: List[Dict[str, Tensor]], do_postprocess: bool = True):
        """Detect, as ``GeneralizedRCNN.inference`` does.

        Args:
            batched_inputs: as for :meth:`forward`.
            do_postprocess: as :meth:`forward` does, resize boxes to the size of the original image; otherwise they stay
                in pixels of the input, clipped to it, and those that lie outside are left out.

        Returns:
            A list with ``Instances`` of each image, in a dict with the key ``instances`` after post-processing.
        """
        if do_postprocess:
            return self.forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        results = self.forward_inference(images, features, self.head(features))
        for result in results:
            result.pred_boxes.clip(result.image_size)
        return [result[result.pred_boxes.nonempty()] for result in results]

    def _level_candidates(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor, quality: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Return scores, classes and boxes of the best candidates of one level of one image, best first.

        Args:
            anchors: H * W * A of them, the anchors of a place side by side.
            logits: ``[A * K, H, W]``.
            deltas: ``[A * 4, H, W]``.
            quality: ``[A, H, W]`` logits, if the model predicts any.
        """
        num_anchors = int(deltas.shape[0]) // 4
        logits = logits.view(num_anchors, self.num_classes, -1)
        # A trace cannot hold pieces whose number depends on the image.
        step = max(SCORES_AT_ONCE // self.num_classes, 1) if not torch.jit.is_tracing() else None
        best = (logits.new_zeros(0, dtype=torch.float32), logits.new_zeros(0, dtype=torch.int64))
        for a in range(num_anchors):
            for start in range(0, logits.shape[2], step) if step else [0]:
                piece = slice(start, start + step if step else None)
                scores = self.classifier_loss.scores(logits[a, :, piece].t())[:, : self.num_classes]
                if quality is not None:
                    of_boxes = quality[a].flatten()[piece].to(scores.dtype)
                    scores = scores * torch.sigmoid(of_boxes).unsqueeze(1)
                best = self._merge(best, scores, start, a, num_anchors)
        scores, position = best
        anchor = torch.div(position, self.num_classes, rounding_mode="floor")
        place, of_place = torch.div(anchor, num_anchors, rounding_mode="floor"), anchor % num_anchors
        chosen = deltas.view(num_anchors, 4, -1)[of_place, :, place]
        boxes = self.box2box_transform.apply_deltas(chosen, anchors.tensor[anchor])
        return scores, position % self.num_classes, boxes

    def _merge(
        self, best: Tuple[Tensor, Tensor], scores: Tensor, start: int, a: int, num_anchors: int
    ) -> Tuple[Tensor, Tensor]:
        """Return the best of what was found so far and of ``[r, K]`` scores of anchor ``a``, places ``start`` and on.

        Both are (scores, position among the level's anchors x classes).
        """
        row, label = (scores > self.test_score_thresh).nonzero(as_tuple=True)
        found, found_position = scores[row, label], ((row + start) * num_anchors + a) * self.num_classes + label
        values = torch.cat([best[0].to(found.dtype), found])
        positions = torch.cat([best[1], found_position])
        if torch.jit.is_tracing():  # how many there are is not known
            kept = values.argsort(descending=True)[: self.test_topk_candidates]
        else:
            kept = values.topk(min(self.test_topk_candidates, len(values)))[1]
        return values[kept], positions[kept]


def _iou_of_pairs(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of each box with its target, ``[n]`` from ``[n, 4]`` twice."""
    low, high = torch.maximum(boxes[:, :2], targets[:, :2]), torch.minimum(boxes[:, 2:], targets[:, 2:])
    intersection = (high - low).clamp(min=0).prod(1)
    area = sum((corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1) for corners in (boxes, targets))
    return intersection / (area - intersection).clamp(min=torch.finfo(boxes.dtype).eps)


def _check_loss(loss: ClassifierLoss) -> None:
    """Refuse a loss with other columns than the K classes."""
    if not (loss.has_independent_columns and loss.background):
        serving = sorted(name for name, cls in CLASSIFIER_LOSS_REGISTRY if _serves(cls, loss.num_classes))
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS is {loss.name!r}, whose columns are not {loss.num_classes} independent classes; a "
            f"one-stage detector can be trained with {', '.join(serving)}."
        )

    if loss.regularizer is not None:
        raise InputError(
            f"MODEL.LONG_TAIL.REGULARIZER.NAME is {loss.regularizer.name!r}, which compares regions that were sampled, "
            f"as a two-stage detector's are; a one-stage detector has a hundred thousand anchors. Set it to ''."
        )


def _serves(cls, num_classes: int) -> bool:
    """Return whether a loss with its default settings has independent columns only."""
    loss = cls(CategoryFrequency.from_counts([1] * num_classes, num_images=num_classes + 1))
    return loss.has_independent_columns
