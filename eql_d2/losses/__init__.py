"""Classifier losses: logits and labels in, a loss and scores out. Needs torch, not Detectron2."""

from eql_d2.losses.acsl import AdaptiveClassSuppressionLoss
from eql_d2.losses.bags import BalancedGroupSoftmax
from eql_d2.losses.balanced_softmax import BalancedSoftmaxLoss
from eql_d2.losses.base import ClassifierLoss
from eql_d2.losses.calibration import (
    CALIBRATION_REGISTRY,
    LogitStatistics,
    LogN,
    NorCal,
    RunningLogitStatistics,
    build_calibration,
)
from eql_d2.losses.class_balanced import ClassBalancedLoss
from eql_d2.losses.droploss import DropLoss
from eql_d2.losses.ecm import EffectiveClassMarginLoss
from eql_d2.losses.efl import EqualizedFocalLoss
from eql_d2.losses.eqfl import EqualizedQualityFocalLoss
from eql_d2.losses.eql import EqualizationLoss
from eql_d2.losses.eql_v2 import EqualizationLossV2
from eql_d2.losses.federated import FederatedLoss
from eql_d2.losses.focal import FocalLoss
from eql_d2.losses.fracal import Fracal
from eql_d2.losses.gol import GumbelOptimizedLoss
from eql_d2.losses.iif import InverseImageFrequencyLoss
from eql_d2.losses.inverse_frequency import InverseFrequencyLoss
from eql_d2.losses.ldam import LabelDistributionAwareMarginLoss
from eql_d2.losses.loce import EquilibriumLoss
from eql_d2.losses.pcb import PairwiseClassBalance
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY, build_classifier_loss, default_settings
from eql_d2.losses.regularizer import REGULARIZER_REGISTRY, Regularizer, add_regularizer
from eql_d2.losses.rog import RankingRegularizer
from eql_d2.losses.seesaw import SeesawLoss
from eql_d2.losses.seql import RandomSoftmaxEqualizationLoss
from eql_d2.losses.sigmoid import SigmoidLoss
from eql_d2.losses.softmax import SoftmaxLoss
from eql_d2.losses.softmax_eql import GradientSoftmaxEqualizationLoss
from eql_d2.losses.tau_norm import tau_normalize

__all__ = [
    "CALIBRATION_REGISTRY",
    "CLASSIFIER_LOSS_REGISTRY",
    "REGULARIZER_REGISTRY",
    "AdaptiveClassSuppressionLoss",
    "BalancedGroupSoftmax",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "ClassifierLoss",
    "DropLoss",
    "EffectiveClassMarginLoss",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "EquilibriumLoss",
    "FederatedLoss",
    "FocalLoss",
    "Fracal",
    "GradientSoftmaxEqualizationLoss",
    "GumbelOptimizedLoss",
    "InverseFrequencyLoss",
    "InverseImageFrequencyLoss",
    "LabelDistributionAwareMarginLoss",
    "LogN",
    "LogitStatistics",
    "NorCal",
    "PairwiseClassBalance",
    "RandomSoftmaxEqualizationLoss",
    "RankingRegularizer",
    "Regularizer",
    "RunningLogitStatistics",
    "SeesawLoss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "add_regularizer",
    "build_calibration",
    "build_classifier_loss",
    "default_settings",
    "tau_normalize",
]
