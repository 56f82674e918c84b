"""Image classification with the classifier losses: images are the regions, and none of them is background."""

from typing import Any, Dict, List, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassifierLoss
from eql_d2.modeling.build import build_foreground_loss_from_config
from eql_d2.modeling.classifier_layer import ClassifierLayer, classifier_settings
from eql_d2.modeling.statistics import log_loss_statistics, statistics_are_due


class ClassifierHead(ClassifierLayer):
    """Global average pooling and a classifier of this package.

    Args:
        in_channels: of the feature map.
        classifier_loss: over K logits.
        settings: of :meth:`~eql_d2.modeling.classifier_layer.ClassifierLayer.add_classifier`.
    """

    def __init__(self, in_channels: int, classifier_loss: ClassifierLoss, **settings: Any):
        super().__init__()
        self.add_classifier(in_channels, classifier_loss, **settings)

    def forward(self, features: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the logits ``[N, K]`` of feature maps ``[N, C, H, W]`` or vectors ``[N, C]``, and the vectors."""
        x = features.mean((2, 3)) if features.ndim == 4 else features
        return self.logits(x), x


@META_ARCH_REGISTRY.register()
class LongTailClassifier(nn.Module):
    """A backbone and a linear classifier over its last feature map, trained by a classifier loss without background.

    Args:
        backbone: of Detectron2's kind; the last of its features is used.
        head: the classifier.
        pixel_mean: of each channel, subtracted.
        pixel_std: of each channel, divided by.
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, head: ClassifierHead, pixel_mean: Tuple[float, ...], pixel_std: Tuple[float, ...]
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Convolutions of small images are a third faster with the channels last, on CPUs and on GPUs in half precision.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        backbone = build_backbone(cfg)
        in_channels = list(backbone.output_shape().values())[-1].channels
        if cfg.MODEL.LONG_TAIL.UNVERIFIED != "loss":
            raise InputError(
                f"MODEL.LONG_TAIL.UNVERIFIED is {cfg.MODEL.LONG_TAIL.UNVERIFIED!r}, but an image that is classified "
                f"has its class and says nothing of others; set it to 'loss'."
            )
        classifier_loss = build_foreground_loss_from_config(cfg, "an image")
        return {
            "backbone": backbone,
            "head": ClassifierHead(in_channels, classifier_loss, **classifier_settings(cfg)),
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: List[Dict[str, Any]]):
        """Return the losses in training, the scores else.

        Args:
            batched_inputs: one dict for each of N images: ``image``, uint8 or float ``[3, H, W]``, all of one size, in
                the order of ``INPUT.FORMAT``; in training ``gt_class``, its label in ``0..K-1``.

        Returns:
            In training ``{"loss_cls": scalar}``, or what the loss names its parts; else a list of N dicts with
            ``scores``, float32 ``[K]``.
        """
        logits, _ = self.head(self._features(batched_inputs))
        if not self.training:
            num_classes = self.head.classifier_loss.num_classes
            return [{"scores": scores} for scores in self.head.scores(logits)[:, :num_classes]]
        gt_classes = torch.tensor([image["gt_class"] for image in batched_inputs], device=self.device)
        loss = self.head.classifier_loss(logits, gt_classes)
        self._log(logits, gt_classes)
        return dict(loss) if isinstance(loss, dict) else {"loss_cls": loss}

    def _features(self, batched_inputs: List[Dict[str, Any]]) -> Tensor:
        images = torch.stack([image["image"] for image in batched_inputs]).to(self.device, non_blocking=True)
        images = (images.float() - self.pixel_mean) / self.pixel_std
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return list(features.values())[-1]

    @torch.no_grad()
    def _log(self, logits: Tensor, gt_classes: Tensor) -> None:
        if statistics_are_due():
            top1 = (logits.argmax(1) == gt_classes).float().mean()
            get_event_storage().put_scalar("train_top1", 100 * float(top1))
            log_loss_statistics(self.head.classifier_loss)
