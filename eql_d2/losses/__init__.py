"""Classifier losses: logits and labels in, a loss and scores out. Needs torch, not Detectron2."""

from eql_d2.losses.base import ClassifierLoss
from eql_d2.losses.eql import EqualizationLoss
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY, build_classifier_loss, default_settings
from eql_d2.losses.sigmoid import SigmoidLoss
from eql_d2.losses.softmax import SoftmaxLoss

__all__ = [
    "CLASSIFIER_LOSS_REGISTRY",
    "ClassifierLoss",
    "EqualizationLoss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "build_classifier_loss",
    "default_settings",
]
