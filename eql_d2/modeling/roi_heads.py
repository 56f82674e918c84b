"""ROI heads: Detectron2's three, with the long-tailed box predictor and image-level labels on every region."""

from contextlib import contextmanager
from functools import partial
from typing import Callable, Dict, Iterator, List, Optional, Sequence
from unittest.mock import patch

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.base import widen
from eql_d2.modeling.box_predictor import LongTailOutputLayers, split_by_image
from eql_d2.modeling.build import check_plain
from eql_d2.modeling.feature_memory import FeatureMemory
from eql_d2.modeling.frozen import is_frozen
from eql_d2.modeling.ignored import IgnoredRegions
from eql_d2.modeling.postprocessing import fast_rcnn_inference
from eql_d2.modeling.refinement import FeatureRefinement


class ImageLabelsMixin:
    """Hands the image-level labels and the ignored boxes of a batch to the regions that are sampled from it.

    Each proposal gets the field ``verified [R_i, K]``, a view of its image's row that takes no memory of its own. What
    is background and lies in an ignored box is not sampled; in the later stages of a cascade, which sample nothing, it
    is dropped. The labels travel beside the targets, not in them: ``Instances`` refuses fields of another length.
    """

    _verified: Optional[Tensor] = None
    _ignored: Optional[IgnoredRegions] = None

    @contextmanager
    def image_labels(self, verified: Optional[Tensor], ignored: Optional[IgnoredRegions] = None) -> Iterator[None]:
        """Use what is known of the images for the forward pass inside the block.

        Args:
            verified: bool ``[N, K]``, one row per image, or ``None``.
            ignored: the ignored regions of the batch, or ``None``.
        """
        self._verified, self._ignored = verified, ignored
        try:
            yield
        finally:
            self._verified = self._ignored = None

    def _attach_image_labels(self, proposals: List[Instances]) -> List[Instances]:
        if self._verified is not None:
            for proposals_per_image, row in zip(proposals, self._verified):
                proposals_per_image.verified = row.expand(len(proposals_per_image), -1)
        return proposals

    def _without_ignored(self, proposals: List[Instances], is_foreground: Callable) -> List[Instances]:
        """Return the proposals but for those that are background and lie in an ignored region.

        Args:
            proposals: of each image.
            is_foreground: called with the place of an image, says of each of its proposals, bool ``[R_i]``.
        """
        if self._ignored is None:
            return proposals
        kept = []
        for image, of_image in enumerate(proposals):
            kept.append(of_image[is_foreground(image) | ~self._ignored.cover(image, of_image.proposal_boxes)])
        return kept

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: List[Instances], targets: List[Instances]) -> List[Instances]:
        def is_foreground(image: int) -> Tensor:
            overlaps = pairwise_iou(targets[image].gt_boxes, proposals[image].proposal_boxes)
            return self.proposal_matcher(overlaps)[1] == 1

        # The objects' own boxes, which are added to the proposals to sample from, are never background.
        proposals = self._without_ignored(proposals, is_foreground)
        return self._attach_image_labels(super().label_and_sample_proposals(proposals, targets))

    def forward(self, images, features, proposals, targets=None):
        """Same as Detectron2's; no masks are computed in training where the mask head is frozen."""
        if not (self.training and self.mask_on and is_frozen(self.mask_head)):
            return super().forward(images, features, proposals, targets)
        with patch.object(self, "mask_on", False):
            return super().forward(images, features, proposals, targets)


@ROI_HEADS_REGISTRY.register()
class LongTailStandardROIHeads(ImageLabelsMixin, StandardROIHeads):
    """``StandardROIHeads`` (FPN) with a :class:`LongTailOutputLayers`, and what needs the features of its regions."""

    @configurable
    def __init__(
        self,
        *,
        memory: Optional[FeatureMemory] = None,
        refinement: Optional[FeatureRefinement] = None,
        pass_weights: Sequence[float] = (1.0,),
        **kwargs,
    ):
        """
        Args:
            memory: region features of earlier images, some of which are classified in each training step as regions of
                one more image. Masks are not trained by them.
            refinement: makes the features of the next pass through the box head.
            pass_weights: factor of the classification loss of each pass; more than one with a refinement alone. Boxes
                are trained by, and detections are those of, the last pass.
            kwargs: arguments of ``StandardROIHeads``.

        Raises:
            InputError: for a memory beside a loss that does not say which classes it wants, or either with
                ``train_on_pred_boxes``.
        """
        super().__init__(**kwargs)
        if memory is not None and self.box_predictor.classifier_loss.class_demand() is None:
            raise InputError(
                f"MODEL.LONG_TAIL.FEATURE_MEMORY.SIZE is {memory.size}, and MODEL.LONG_TAIL.LOSS "
                f"{self.box_predictor.classifier_loss.name!r} does not say which classes it wants; LOCE does."
            )
        if self.train_on_pred_boxes and (memory is not None or refinement is not None):
            raise InputError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True, which goes neither with "
                "MODEL.LONG_TAIL.FEATURE_MEMORY nor with MODEL.LONG_TAIL.REFINEMENT."
            )
        self.memory, self.refinement, self.pass_weights = memory, refinement, tuple(pass_weights)
        if refinement is not None:  # it wants the deltas of all classes
            self.box_predictor.gather_deltas = False
        self._targets: Optional[List[Instances]] = None

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        predictor = ret["box_predictor"] = LongTailOutputLayers(cfg, ret["box_head"].output_shape)
        node = cfg.MODEL.LONG_TAIL
        if node.FEATURE_MEMORY.SIZE:
            ret["memory"] = FeatureMemory(*map(node.FEATURE_MEMORY.get, ("SIZE", "DRAWS", "FEATURES", "JITTER")))
        if node.REFINEMENT.LOSS_WEIGHTS:
            side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            shape = (input_shape[ret["box_in_features"][0]].channels, side, side)
            widths = (predictor.cls_score.out_features, predictor.bbox_pred.out_features, node.REFINEMENT.WIDTH)
            ret["refinement"] = FeatureRefinement(shape, *widths)
            ret["pass_weights"] = node.REFINEMENT.LOSS_WEIGHTS
        return ret

    def region_features(self, features: Dict[str, Tensor], boxes: List[Boxes]) -> Tensor:
        """Return what the classifier sees of each region, ``[R, C]``.

        Args:
            features: of the backbone, by name.
            boxes: of each image, together R.
        """
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return torch.flatten(self.box_head(pooled), start_dim=1)

    def label_and_sample_proposals(self, proposals: List[Instances], targets: List[Instances]) -> List[Instances]:
        self._targets = targets
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features, proposals):
        """Same as ``StandardROIHeads._forward_box``, with the regions from memory and the passes there are."""
        targets, self._targets = self._targets, None
        if self.memory is None and self.refinement is None:
            return super()._forward_box(features, proposals)
        pool = partial(self.box_pooler, [features[name] for name in self.box_in_features])
        x = pool([p.proposal_boxes for p in proposals])
        if self.training and self.memory is not None:
            assert targets is not None
            self.memory.put(targets, pool)
            for drawn in self.memory.draw(self.box_predictor.classifier_loss.class_demand()):
                x = torch.cat([x, drawn.features.to(x)])
                if self._verified is not None:
                    drawn.verified = self._verified.new_zeros(1, self.num_classes).expand(len(drawn), -1)
                proposals = [*proposals, drawn]
        return self._run_passes(x, proposals)

    def _run_passes(self, x: Tensor, proposals: List[Instances]):
        """Return the losses, or at test time the detections, of region features ``[R, C, h, w]``."""
        predictor, regularizer = self.box_predictor, self.box_predictor.classifier_loss.regularizer
        last = len(self.pass_weights) - 1
        earlier: List[Dict[str, Tensor]] = []
        for i in range(last + 1):
            if regularizer is not None:
                regularizer.progress = i / last if last else 1.0
            predictions = predictor(self.box_head(x))
            if i < last:
                if self.training:
                    earlier.append(predictor.classification_losses(predictions[0], proposals))
                x = self.refinement(x, *predictions)
        if not self.training:
            return predictor.inference(predictions, proposals)[0]
        losses = predictor.losses(predictions, proposals)
        for name in losses.keys() - {"loss_box_reg"}:
            of_passes = [*(of_pass[name] for of_pass in earlier), losses[name]]
            losses[name] = sum(weight * loss for weight, loss in zip(self.pass_weights, of_passes))
        return losses


@ROI_HEADS_REGISTRY.register()
class LongTailRes5ROIHeads(ImageLabelsMixin, Res5ROIHeads):
    """``Res5ROIHeads`` (C4) with a :class:`LongTailOutputLayers`."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_plain(cfg, cls.__name__)
        ret = super().from_config(cfg, input_shape)
        ret["box_predictor"] = LongTailOutputLayers(cfg, ret["box_predictor"].cls_score.in_features)
        return ret

    def region_features(self, features: Dict[str, Tensor], boxes: List[Boxes]) -> Tensor:
        """Same as :meth:`LongTailStandardROIHeads.region_features`."""
        return self._shared_roi_transform([features[name] for name in self.in_features], boxes).mean(dim=[2, 3])


@ROI_HEADS_REGISTRY.register()
class LongTailCascadeROIHeads(ImageLabelsMixin, CascadeROIHeads):
    """``CascadeROIHeads`` with a :class:`LongTailOutputLayers`, and so a loss with a state of its own, per stage."""

    @configurable
    def __init__(self, *, stage_loss_weights: Sequence[float] = (1.0,), average: str = "probabilities", **kwargs):
        """
        Args:
            stage_loss_weights: factor of the box losses of each stage, or one for all.
            average: "probabilities" or "logits": what is averaged over the stages at test time. The mean of the logits
                becomes scores by the last stage's loss (and calibration), as in the releases of ACSL and BAGS.
            kwargs: arguments of ``CascadeROIHeads``.

        Raises:
            InputError: for another ``average``, another number of weights than stages, or logits that are averaged
                before a calibration which knows each stage's own.
        """
        super().__init__(**kwargs)
        if len(stage_loss_weights) not in (1, self.num_cascade_stages):
            raise InputError(
                f"MODEL.LONG_TAIL.CASCADE.STAGE_LOSS_WEIGHTS is {tuple(stage_loss_weights)}, but the cascade has "
                f"{self.num_cascade_stages} stages; give one factor for each, or one for all."
            )
        if average not in ("probabilities", "logits"):
            raise InputError(f"MODEL.LONG_TAIL.CASCADE.SCORES is {average!r}; there are 'probabilities' and 'logits'.")
        calibration = self.box_predictor[-1].calibration
        if average == "logits" and calibration is not None and calibration.is_of_one_stage:
            raise InputError(
                f"MODEL.LONG_TAIL.CASCADE.SCORES is 'logits', but the calibration {calibration.name} has statistics of "
                f"each stage's own logits, not of their mean; set it to 'probabilities'."
            )
        self.stage_loss_weights = tuple(stage_loss_weights) * (self.num_cascade_stages // len(stage_loss_weights))
        self.average = average

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_plain(cfg, cls.__name__)
        node = cfg.MODEL.LONG_TAIL.CASCADE
        return {
            **super().from_config(cfg, input_shape),
            "stage_loss_weights": node.STAGE_LOSS_WEIGHTS,
            "average": node.SCORES,
        }

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            LongTailOutputLayers(cfg, head.output_shape, box2box_transform=predictor.box2box_transform, stage=stage)
            for stage, (head, predictor) in enumerate(zip(ret["box_heads"], ret["box_predictors"]))
        ]
        return ret

    def _match_and_label_boxes(self, proposals: List[Instances], stage: int, targets: List[Instances]):
        # Every stage makes new proposals from the boxes of the one before: their labels must be attached again.
        labelled = super()._match_and_label_boxes(proposals, stage, targets)
        labelled = self._without_ignored(labelled, lambda image: labelled[image].gt_classes < self.num_classes)
        return self._attach_image_labels(labelled)

    def _forward_box(self, features, proposals, targets=None):
        """Same as ``CascadeROIHeads._forward_box``; at test time by the exact top-k post-processing.

        The inherited method calls Detectron2's module-level ``fast_rcnn_inference``, so only its training half can be
        used as it is.
        """
        if self.training:
            return self._weighted(super()._forward_box(features, proposals, targets))
        features = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        boxes, of_stages = None, []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(features, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            if self.average == "logits":
                of_stages.append(widen(predictions[0]))
            else:
                of_stages.append(torch.cat(predictor.predict_probs(predictions, proposals)))
        mean = sum(of_stages) * (1.0 / self.num_cascade_stages)
        if self.average == "logits":
            scores = predictor.predict_probs((mean, predictions[1]), proposals)
        else:
            scores = split_by_image(mean, proposals)
        instances, _ = fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances

    def _weighted(self, losses: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Multiply the losses of each stage, whose names end in its number, by the stage's factor."""
        weights = {f"_stage{stage}": weight for stage, weight in enumerate(self.stage_loss_weights)}
        return {name: value * weights[name[name.rindex("_stage") :]] for name, value in losses.items()}
