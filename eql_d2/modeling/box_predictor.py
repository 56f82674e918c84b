"""The box predictor: a classifier loss in the place of Detectron2's softmax, everything else inherited."""

from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassifierLoss, tau_normalize
from eql_d2.losses.calibration import Calibration
from eql_d2.modeling.build import build_calibration_from_config, build_classifier_loss_from_config
from eql_d2.modeling.normed import NormedLinear, check_not_normed, normed_settings
from eql_d2.modeling.postprocessing import fast_rcnn_inference

#: Iterations between two readings of the loss's statistics, which make the host wait for the device: the period of
#: Detectron2's writers.
STATISTICS_PERIOD = 20


class LongTailOutputLayers(FastRCNNOutputLayers):
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
            calibration: turns the logits into scores at test time, in the place of ``classifier_loss.scores``.
            tau: exponent of the tau-normalisation at test time.
            scale: give each logit a learnable factor ``cls_scale``, which starts at 1 (LWS, arXiv 1910.09217):
                "weight" multiplies the class's weight, "logit" its bias too; "" for none.
            normed: temperature, power and eps of a normed classifier; ``None`` for a linear one.
            train_on_pred_boxes: whether the ROI heads ask for the boxes of all classes in training.
            kwargs: arguments of ``FastRCNNOutputLayers``.

        Raises:
            InputError: for a normed classifier with ``tau``: its weights are equally long already.
        """
        super().__init__(input_shape, **kwargs)
        if normed is not None and tau:
            raise InputError(
                "MODEL.LONG_TAIL.TAU_NORM.TAU makes the weights of the classes equally long, which those of "
                "MODEL.LONG_TAIL.CLASSIFIER normed are already; set it to 0."
            )
        class_specific = self.bbox_pred.out_features > len(self.box2box_transform.weights)
        self.gather_deltas = class_specific and not train_on_pred_boxes
        self.classifier_loss = classifier_loss
        self.calibration = calibration
        self.tau, self.scale = tau, scale
        # A new layer, even of the inherited width: its initial values must not depend on the width that is replaced.
        in_features, num_logits = self.cls_score.in_features, classifier_loss.num_logits
        linear, settings = (nn.Linear, {}) if normed is None else (NormedLinear, normed)
        self.cls_score = linear(in_features, num_logits, **settings)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        with torch.no_grad():
            self.cls_score.bias.copy_(classifier_loss.initial_bias())
        self.cls_scale = nn.Parameter(torch.ones(num_logits)) if scale else None
        # In the checkpoint, since the factors mean another classifier with and without the bias.
        self.register_buffer("cls_scale_of_bias", torch.tensor(scale == "logit") if scale else None)

    @classmethod
    def from_config(cls, cfg, input_shape, stage: int = 0):
        """Read the config; ``stage`` is the predictor's place in a cascade."""
        node = cfg.MODEL.LONG_TAIL
        return {
            **super().from_config(cfg, input_shape),
            "classifier_loss": build_classifier_loss_from_config(cfg),
            "calibration": build_calibration_from_config(cfg, stage),
            "tau": checked_tau(node.TAU_NORM.TAU),
            "scale": ("logit" if node.LWS.SCALE_BIAS else "weight") if node.TRAINABLE == "scale" else "",
            "normed": normed_settings(cfg, "CLASSIFIER", "TEMPERATURE"),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
        }

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the logits ``[R, num_logits]`` and the box deltas of region features ``[R, ...]``.

        In training with class-specific boxes the features ``[R, C]`` take the place of the ``[R, 4 K]`` deltas: only
        those of the ground-truth classes are needed, and :meth:`losses` computes only them.
        """
        x = torch.flatten(x, start_dim=1)
        return self._logits(x), x if self.training and self.gather_deltas else self.bbox_pred(x)

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

    def _logits(self, x: Tensor) -> Tensor:
        bias = self.cls_score.bias
        if self.tau and not self.training:
            weight, bias = tau_normalize(self.cls_score.weight, bias, self.tau, self.classifier_loss.num_classes)
            logits = F.linear(x, weight, bias)
        else:
            logits = self.cls_score(x)
        if self.scale == "weight":
            return (logits - bias) * self.cls_scale + bias
        return logits * self.cls_scale if self.scale == "logit" else logits

    def losses(self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]) -> Dict[str, Tensor]:
        """Return ``loss_cls`` (or the named parts that the classifier loss gives) and ``loss_box_reg``.

        Args:
            predictions: logits ``[R, num_logits]`` and box deltas or features, as :meth:`forward` returns them.
            proposals: labelled proposals, one per image, together R regions. A field ``verified [R_i, K]`` is handed to
                the classifier loss.
        """
        logits, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals])
        if self.training and self.gather_deltas:
            deltas = self._deltas_of_gt_classes(deltas, gt_classes)
        has_verified = all(p.has("verified") for p in proposals)
        verified = cat([p.verified for p in proposals]) if has_verified else None

        classification = self.classifier_loss(logits, gt_classes, verified)
        losses = dict(classification) if isinstance(classification, dict) else {"loss_cls": classification}
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # Images without ground truth have no gt_boxes; all of their regions are background, so any box will do.
        gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        losses["loss_box_reg"] = self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)
        self._log(logits, gt_classes)
        return {name: value * self.loss_weight.get(name, 1.0) for name, value in losses.items()}

    @torch.no_grad()
    def _log(self, logits: Tensor, gt_classes: Tensor) -> None:
        storage = get_event_storage()
        if (storage.iter + 1) % STATISTICS_PERIOD:
            return
        # Scores, not logits: Detectron2 takes the last column for background, and only the scores have it there.
        _log_classification_stats(self.classifier_loss.scores(logits), gt_classes)
        for name, value in self.classifier_loss.statistics().items():
            storage.put_scalar(f"long_tail/{name}", float(value))

    def predict_probs(self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]) -> List[Tensor]:
        """Return the scores ``[R_i, K + 1]`` of each image; column K is background."""
        logits, _ = predictions
        if self.calibration is None:
            scores = self.classifier_loss.scores(logits)
        else:
            scores = self.calibration(self.classifier_loss, logits)
        return list(scores.split([len(p) for p in proposals]))

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

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args, **kwargs) -> None:
        # The calibration is that of the config, whatever a checkpoint was saved with.
        for name in [name for name in state_dict if name.startswith(f"{prefix}calibration.")]:
            del state_dict[name]
        if self.calibration is not None:
            state_dict.update({f"{prefix}calibration.{k}": v for k, v in self.calibration.state_dict().items()})
        self._check_scale(state_dict, prefix)
        # A checkpoint of LWS in a model without the factors: they become part of the classifier, the scores are equal.
        if not self.scale and f"{prefix}cls_scale" in state_dict:
            scale = state_dict.pop(f"{prefix}cls_scale")
            scales_bias = bool(state_dict.pop(f"{prefix}cls_scale_of_bias", True))
            for name, factor in (("weight", scale.unsqueeze(1)), ("bias", scale if scales_bias else 1)):
                key = f"{prefix}cls_score.{name}"
                if key in state_dict:
                    state_dict[key] = state_dict[key] * factor
        if not isinstance(self.cls_score, NormedLinear):
            check_not_normed(state_dict, f"{prefix}cls_score", "MODEL.LONG_TAIL.CLASSIFIER")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_scale(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Check that this predictor means by the factors of LWS in ``state_dict`` what they were learnt to mean."""
        if f"{prefix}cls_scale" not in state_dict:
            return
        # The factors of checkpoints without the flag are of the logit.
        scales_bias = bool(state_dict.setdefault(f"{prefix}cls_scale_of_bias", torch.tensor(True)))
        if self.scale and scales_bias != (self.scale == "logit"):
            raise InputError(
                f"{prefix}cls_scale was learnt with MODEL.LONG_TAIL.LWS.SCALE_BIAS {scales_bias}; set it so."
            )
        if not self.scale and isinstance(self.cls_score, NormedLinear):
            raise InputError(
                f"{prefix}cls_scale cannot become part of a normed classifier, whose weights are equally long; set "
                f"MODEL.LONG_TAIL.TRAINABLE scale."
            )


def checked_tau(tau: float) -> float:
    """Return ``MODEL.LONG_TAIL.TAU_NORM.TAU``.

    Raises:
        InputError: if it is not in [0, 1].
    """
    if not 0 <= tau <= 1:
        raise InputError(f"MODEL.LONG_TAIL.TAU_NORM.TAU is {tau}; it lies between 0 and 1.")
    return tau


def box_predictors(model: nn.Module) -> Iterator[Tuple[str, LongTailOutputLayers]]:
    """Yield the name and the module of each box predictor: one, or one for each stage of a cascade."""
    for name, module in model.named_modules():
        if isinstance(module, LongTailOutputLayers):
            yield name, module
