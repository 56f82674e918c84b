"""Detectron2 modules: importing this registers the meta architectures, the ROI heads and the mask head; without a
compiled Detectron2 it also gives that its deformable layers."""

from eql_d2.modeling import backbones, vit
from eql_d2.modeling.box_predictor import LongTailOutputLayers
from eql_d2.modeling.build import build_classifier_loss_from_config
from eql_d2.modeling.classifier import LongTailClassifier
from eql_d2.modeling.deformable import use_torchvision
from eql_d2.modeling.mask_head import LongTailMaskHead
from eql_d2.modeling.rcnn import LongTailRCNN
from eql_d2.modeling.retinanet import LongTailRetinaNet
from eql_d2.modeling.roi_heads import LongTailCascadeROIHeads, LongTailRes5ROIHeads, LongTailStandardROIHeads
from eql_d2.modeling.sem_seg_head import (
    LongTailDeepLabV3Head,
    LongTailDeepLabV3PlusHead,
    LongTailSemanticSegmentor,
    LongTailSemSegFPNHead,
)

use_torchvision()

__all__ = [
    "LongTailCascadeROIHeads",
    "LongTailClassifier",
    "LongTailDeepLabV3Head",
    "LongTailDeepLabV3PlusHead",
    "LongTailMaskHead",
    "LongTailOutputLayers",
    "LongTailRCNN",
    "LongTailRes5ROIHeads",
    "LongTailRetinaNet",
    "LongTailSemSegFPNHead",
    "LongTailSemanticSegmentor",
    "LongTailStandardROIHeads",
    "backbones",
    "build_classifier_loss_from_config",
    "vit",
]
