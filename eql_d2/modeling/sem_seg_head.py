"""Semantic segmentation with the classifier losses: pixels are the regions, and none of them is background."""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.projects.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from torch import Tensor, nn

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, ClassifierLoss
from eql_d2.losses.base import widen
from eql_d2.losses.functional import attach_gradient
from eql_d2.modeling.build import build_foreground_loss, build_foreground_loss_from_config
from eql_d2.modeling.classifier_layer import ClassifierLayer, classifier_settings
from eql_d2.modeling.rcnn import verified_classes
from eql_d2.modeling.statistics import log_loss_statistics, statistics_are_due

#: The node of ``MODEL`` that has the number of classes.
HEAD = "SEM_SEG_HEAD"
#: Scores that inference computes together; bounds the memory, not the result.
SCORES_AT_ONCE = 1 << 22


class PixelClassifier(ClassifierLayer):
    """A segmentation head's last layer and its loss, in the place of Detectron2's; the layers below are the head's own.

    To be put before one of Detectron2's heads among the bases. The layer ``cls_score`` is the classifier of every head
    of this package, applied to each place of the feature map; its logits are upsampled as Detectron2 does. In training
    the loss is the mean over the pixels with a label. It is computed image by image: beside the logits of the feature
    map and their gradient, those of one image's pixels are in memory at a time, and only until its loss is known.
    """

    classifies_regions = False  # but the places of a feature map, between which the logits are upsampled
    #: Bool ``[N, K]``, the classes that the image-level labels of a batch verify; set before :meth:`forward`.
    verified: Optional[Tensor] = None

    def add_pixel_classifier(self, classifier_loss: ClassifierLoss, **settings: Any) -> None:
        """Put the classifier in the place of the head's convolution ``predictor``.

        Args:
            classifier_loss: over K logits, to which each pixel contributes by itself.
            settings: of :meth:`~eql_d2.modeling.classifier_layer.ClassifierLayer.add_classifier`.

        Raises:
            InputError: for a loss that cannot serve.
        """
        check_serves_pixels(classifier_loss)
        self.add_classifier(self.predictor.in_channels, classifier_loss, **settings)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        self.predictor = nn.Identity()

    def forward(self, features: Dict[str, Tensor], targets: Optional[Tensor] = None) -> Tuple[Any, Dict[str, Tensor]]:
        """Return ``(None, losses)`` in training, else ``(scores, {})``.

        Args:
            features: maps ``[N, C, H / stride, W / stride]`` by name.
            targets: int64 ``[N, H, W]``, labels ``0..K-1`` or ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE``.

        Returns:
            ``{"loss_sem_seg": scalar}``; or float32 ``[N, K, H, W]``, what the loss (or the calibration) makes of the
            logits of each pixel.
        """
        logits = self._logits_of_places(self.layers(features))
        if self.training:
            return None, self.losses(logits, targets)
        return self._scores_of_pixels(logits), {}

    def _logits_of_places(self, features: Tensor) -> Tensor:
        """Return ``[N, K, h, w]`` of features ``[N, C, h, w]``: float32 or 64, the logits of a place side by side."""
        places = features.permute(0, 2, 3, 1)
        logits = self.logits(places.reshape(-1, places.shape[-1]))
        return widen(logits).view(*places.shape[:-1], -1).permute(0, 3, 1, 2)

    def _upsampled(self, logits: Tensor) -> Tensor:
        """Return the logits of the pixels ``[N * H * W, K]``; a view, since the channels are side by side."""
        upsampled = F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
        return upsampled.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])

    def _scores_of_pixels(self, logits: Tensor) -> Tensor:
        height, width = (self.common_stride * side for side in logits.shape[2:])
        pixels = self._upsampled(logits)
        num_classes = self.classifier_loss.num_classes
        for rows in pixels.split(max(SCORES_AT_ONCE // num_classes, 1)):
            rows.copy_(self.scores(rows)[:, :num_classes])
        return pixels.view(len(logits), height, width, num_classes).permute(0, 3, 1, 2)

    def losses(self, predictions: Tensor, targets: Tensor) -> Dict[str, Tensor]:
        """Return ``loss_sem_seg``, the mean over the labelled pixels of the batch; zero if there is none.

        Args:
            predictions: logits ``[N, K, h, w]`` of the places of the feature map.
            targets: int64 ``[N, H, W]``, as for :meth:`forward`.

        Raises:
            InputError: for a label that is neither a class nor ignored.
        """
        labels = self._labels(targets)
        verified = self.verified if self.classifier_loss.uses_verified else None
        num_labelled = (labels >= 0).sum((1, 2))
        shares = num_labelled.to(predictions.dtype) / num_labelled.sum().clamp(min=1)
        total, gradient = predictions.new_zeros(()), torch.empty_like(predictions)
        with self.classifier_loss.in_parts(labels.flatten()):
            for i, share in enumerate(shares):
                with torch.enable_grad():
                    of_image = predictions[i : i + 1].detach().requires_grad_()
                    of_pixels = None if verified is None else verified[i].expand(labels[i].numel(), -1)
                    pixels = self._upsampled(of_image)
                    loss = share * self._loss_of_pixels(pixels, labels[i].flatten(), of_pixels)
                    del pixels
                total += loss.detach()
                (gradient[i : i + 1],) = torch.autograd.grad(loss, of_image)
        if statistics_are_due():
            log_loss_statistics(self.classifier_loss)
        return {"loss_sem_seg": attach_gradient(predictions, total, gradient) * self.loss_weight}

    def _loss_of_pixels(self, logits: Tensor, labels: Tensor, verified: Optional[Tensor]) -> Tensor:
        loss = self.classifier_loss(logits, labels, verified, has_ignored=True)
        return sum(loss.values()) if isinstance(loss, dict) else loss

    def _labels(self, targets: Tensor) -> Tensor:
        """Return the targets with -1 for ignored pixels."""
        is_labelled, num_classes = targets != self.ignore_value, self.classifier_loss.num_classes
        unknown = targets[is_labelled & ((targets < 0) | (targets >= num_classes))]
        if len(unknown):
            raise InputError(
                f"A pixel has the label {int(unknown[0])}; there are 0 to {num_classes - 1} "
                f"(MODEL.{HEAD}.NUM_CLASSES), and {self.ignore_value} (MODEL.{HEAD}.IGNORE_VALUE) for none."
            )
        return torch.where(is_labelled, targets, -1)


class _ConfigurableHead(PixelClassifier):
    """The constructor of a head over one of Detectron2's that takes explicit arguments."""

    @configurable
    def __init__(self, input_shape, *, classifier_loss, calibration=None, tau=0.0, scale="", normed=None, **kwargs):
        super().__init__(input_shape, num_classes=classifier_loss.num_classes, **kwargs)
        self.add_pixel_classifier(classifier_loss, calibration=calibration, tau=tau, scale=scale, normed=normed)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> Dict[str, Any]:
        settings = super().from_config(cfg, input_shape)
        del settings["num_classes"]
        return {**settings, **_classifier_from_config(cfg)}


@SEM_SEG_HEADS_REGISTRY.register()
class LongTailSemSegFPNHead(_ConfigurableHead, SemSegFPNHead):
    """``SemSegFPNHead`` (Panoptic FPN, arXiv 1901.02446) with a classifier loss of this package.

    Args:
        input_shape: as for ``SemSegFPNHead``.
        classifier_loss: over K logits.
        calibration, tau, scale, normed: of :meth:`~eql_d2.modeling.classifier_layer.ClassifierLayer.add_classifier`.
        **kwargs: as for ``SemSegFPNHead``, but for the number of classes.

    Raises:
        InputError: for a loss that cannot serve, see :func:`check_serves_pixels`.
    """


@SEM_SEG_HEADS_REGISTRY.register()
class LongTailDeepLabV3PlusHead(_ConfigurableHead, DeepLabV3PlusHead):
    """``DeepLabV3PlusHead`` (arXiv 1802.02611) of Detectron2's DeepLab project with a classifier loss of this package.

    ``MODEL.SEM_SEG_HEAD.LOSS_TYPE`` is not looked at: the loss is that of ``MODEL.LONG_TAIL``, over all pixels.

    Args:
        input_shape: as for ``DeepLabV3PlusHead``.
        classifier_loss, calibration, tau, scale, normed: as for :class:`LongTailSemSegFPNHead`.
        **kwargs: as for ``DeepLabV3PlusHead``, but for the number of classes and the loss type.

    Raises:
        InputError: for a loss that cannot serve, see :func:`check_serves_pixels`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> Dict[str, Any]:
        settings = super().from_config(cfg, input_shape)
        del settings["loss_type"]
        return settings


@SEM_SEG_HEADS_REGISTRY.register()
class LongTailDeepLabV3Head(PixelClassifier, DeepLabV3Head):
    """``DeepLabV3Head`` (arXiv 1706.05587); otherwise as :class:`LongTailDeepLabV3PlusHead`.

    Args:
        cfg: the config.
        input_shape: as for ``DeepLabV3Head``.
    """

    def __init__(self, cfg: CfgNode, input_shape):
        super().__init__(cfg, input_shape)
        self.add_pixel_classifier(**_classifier_from_config(cfg))
        del self.loss

    def layers(self, features: Dict[str, Tensor]) -> Tensor:
        """Return the features of the last layer, ``[N, C, h, w]``."""
        return self.aspp(features[self.in_features[0]])


def _classifier_from_config(cfg: CfgNode) -> Dict[str, Any]:
    """Return the arguments of :meth:`PixelClassifier.add_pixel_classifier`."""
    classifier_loss = build_foreground_loss_from_config(cfg, "a pixel", HEAD)
    return {"classifier_loss": classifier_loss, **classifier_settings(cfg, head=HEAD)}


def check_serves_pixels(loss: ClassifierLoss) -> None:
    """Check that a loss can be computed image by image over pixels that always show a class.

    Raises:
        InputError: if it has logits beside those of the K classes, or its regions depend on each other; the message
            names the losses that serve. For a regulariser beside it, which ranks all regions of a step.
    """
    if loss.regularizer is not None:
        raise InputError(
            f"MODEL.LONG_TAIL.REGULARIZER.NAME is {loss.regularizer.name!r}, which compares the regions of a step with "
            f"each other, and there are too many pixels for that; set it to ''."
        )
    if not _serves(loss):
        counts = CategoryFrequency.from_counts([1] * loss.num_classes, num_images=loss.num_classes + 1)
        serving = [name for name, _ in CLASSIFIER_LOSS_REGISTRY if _serves(build_foreground_loss(name, counts, {}))]
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS is {loss.name!r}, which sees the regions of a step together or has logits beside "
            f"those of the {loss.num_classes} classes; a segmentation head can be trained with "
            f"{', '.join(sorted(serving))}."
        )


def _serves(loss: ClassifierLoss) -> bool:
    return loss.regions_are_independent and not loss.has_background_logits


@META_ARCH_REGISTRY.register()
class LongTailSemanticSegmentor(SemanticSegmentor):
    """``SemanticSegmentor`` whose training input may hold ``image_labels``, as for
    :class:`~eql_d2.modeling.rcnn.LongTailRCNN`; the head must be of this package.
    """

    def forward(self, batched_inputs: List[Dict[str, Any]]):
        """Same as ``SemanticSegmentor.forward``; a result's ``sem_seg`` holds scores ``[K, H, W]``, not logits."""
        if self.training:
            verified = verified_classes(batched_inputs, self.sem_seg_head.classifier_loss.num_classes)
            self.sem_seg_head.verified = None if verified is None else verified.to(self.device, non_blocking=True)
        return super().forward(batched_inputs)
