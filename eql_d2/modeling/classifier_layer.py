"""The classifier that box predictors and image classifiers share: a linear layer with a classifier loss behind it."""

from typing import Any, Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassifierLoss, tau_normalize
from eql_d2.losses.calibration import Calibration
from eql_d2.modeling.build import build_calibration_from_config
from eql_d2.modeling.normed import NormedLinear, check_not_normed, normed_settings


class ClassifierLayer(nn.Module):
    """The part of a module that classifies: the layer ``cls_score``, its loss, and what is done at test time.

    To be inherited from, beside what else the module is; :meth:`add_classifier` is called in its constructor. The names
    of the parameters, and what a checkpoint may hold, are then those of every classifier of this package, and training
    protocols (``MODEL.LONG_TAIL.TRAINABLE``) and hooks find it by :func:`classifier_layers`.
    """

    #: Whether the regions of the loss are the rows of features that the layer sees, as statistics of them assume.
    classifies_regions = True

    def add_classifier(
        self,
        in_features: int,
        classifier_loss: ClassifierLoss,
        calibration: Optional[Calibration] = None,
        tau: float = 0.0,
        scale: str = "",
        normed: Optional[Dict[str, float]] = None,
    ) -> None:
        """Add the layer, whose bias is the loss's prior and whose weights are PyTorch's, and all that belongs to it.

        Args:
            in_features: width of the features.
            classifier_loss: the loss over the logits.
            calibration: turns the logits into scores at test time, in the place of ``classifier_loss.scores``.
            tau: exponent of the tau-normalisation at test time.
            scale: give each logit a learnable factor ``cls_scale``, which starts at 1 (LWS, arXiv 1910.09217):
                "weight" multiplies the class's weight, "logit" its bias too; "" for none.
            normed: temperature, power and eps of a normed classifier; ``None`` for a linear one.

        Raises:
            InputError: for a normed classifier with ``tau``: its weights are equally long already.
        """
        self.classifier_loss = classifier_loss
        self.scale = scale
        linear, settings = (nn.Linear, {}) if normed is None else (NormedLinear, normed)
        self.cls_score = linear(in_features, classifier_loss.num_logits, **settings)
        self.score_by(calibration, tau)
        with torch.no_grad():
            self.cls_score.bias.copy_(classifier_loss.initial_bias())
        self.cls_scale = nn.Parameter(torch.ones(classifier_loss.num_logits)) if scale else None
        # In the checkpoint, since the factors mean another classifier with and without the bias.
        self.register_buffer("cls_scale_of_bias", torch.tensor(scale == "logit") if scale else None)

    def score_by(self, calibration: Optional[Calibration], tau: float) -> None:
        """Set what is done at test time; ``calibration`` and ``tau`` as of :meth:`add_classifier`.

        Raises:
            InputError: for a normed classifier with ``tau``: its weights are equally long already.
        """
        if isinstance(self.cls_score, NormedLinear) and tau:
            raise InputError(
                "MODEL.LONG_TAIL.TAU_NORM.TAU makes the weights of the classes equally long, which those of "
                "MODEL.LONG_TAIL.CLASSIFIER normed are already; set it to 0."
            )
        self.calibration, self.tau = calibration, tau

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits ``[R, num_logits]`` of features ``[R, in_features]``."""
        bias = self.cls_score.bias
        if self.tau and not self.training:
            weight, bias = tau_normalize(self.cls_score.weight, bias, self.tau, self.classifier_loss.num_classes)
            logits = F.linear(x, weight, bias)
        else:
            logits = self.cls_score(x)
        if self.scale == "weight":
            return (logits - bias) * self.cls_scale + bias
        return logits * self.cls_scale if self.scale == "logit" else logits

    def scores(self, logits: Tensor) -> Tensor:
        """Return the scores ``[R, K + 1]`` at test time; column K is background."""
        if self.calibration is None:
            return self.classifier_loss.scores(logits)
        return self.calibration(self.classifier_loss, logits)

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


def classifier_settings(cfg: CfgNode, stage: int = 0, head: str = "ROI_HEADS") -> Dict[str, Any]:
    """Return the arguments of :meth:`ClassifierLayer.add_classifier` that the config has beside the loss.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        stage: the classifier's place in a cascade.
        head: the node of ``MODEL`` whose ``NUM_CLASSES`` counts.
    """
    node = cfg.MODEL.LONG_TAIL
    return {
        "calibration": build_calibration_from_config(cfg, stage, head),
        "tau": checked_tau(node.TAU_NORM.TAU),
        "scale": ("logit" if node.LWS.SCALE_BIAS else "weight") if node.TRAINABLE == "scale" else "",
        "normed": normed_settings(cfg, "CLASSIFIER", "TEMPERATURE"),
    }


def checked_tau(tau: float) -> float:
    """Return ``MODEL.LONG_TAIL.TAU_NORM.TAU``.

    Raises:
        InputError: if it is not in [0, 1].
    """
    if not 0 <= tau <= 1:
        raise InputError(f"MODEL.LONG_TAIL.TAU_NORM.TAU is {tau}; it lies between 0 and 1.")
    return tau


def classifier_layers(model: nn.Module) -> Iterator[Tuple[str, ClassifierLayer]]:
    """Yield the name and the module of each classifier of this package: one, or one for each stage of a cascade."""
    for name, module in model.named_modules():
        if isinstance(module, ClassifierLayer):
            yield name, module
