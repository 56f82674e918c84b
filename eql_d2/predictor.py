"""Inference as users do it: images in, instances out, pictures and a results file on request."""

from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances, ROIMasks
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import Tensor

import eql_d2.modeling  # noqa: F401  (registers the model)
from eql_d2.config import choose_device, load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.errors import InputError
from eql_d2.evaluation.thresholds import Thresholds
from eql_d2.run_folder import RunFolder


class Predictor:
    """A trained model that takes plain images.

    Args:
        cfg: the config of the training run (its ``config.yaml``), or the path of one; ``MODEL.WEIGHTS`` names the
            checkpoint. If the loss needs category counts and neither ``MODEL.LONG_TAIL.FREQUENCY`` nor the training
            json is there, the ``category_frequency.json`` beside the checkpoint is used.
        weights: a checkpoint, in place of ``MODEL.WEIGHTS``.
        device: in place of ``MODEL.DEVICE``.
        batch_size: images per forward pass.
        thresholds: a file of ``eql-d2 thresholds``, the least score of each class; by default ``thresholds.json``
            beside the checkpoint, if there is one, and ``None`` for all detections.
        allow_missing: whether parameters that the checkpoint lacks may stay as they are initialized, with a warning.

    Attributes:
        thresholds: float32 ``[K]``, or ``None``.

    Raises:
        InputError: if the weights are missing, do not fit the config or hold NaN; if the thresholds are of other
            classes.

    Example:
        >>> predictor = Predictor("output/config.yaml", weights="output/model_final.pth")
        >>> instances = predictor(cv2.imread("image.jpg"))
        >>> cv2.imwrite("detections.jpg", predictor.draw(cv2.imread("image.jpg"), instances))
    """

    def __init__(
        self,
        cfg: Union[CfgNode, str, Path],
        weights: str = "",
        device: str = "",
        batch_size: int = 1,
        thresholds: Union[str, Path, None] = "",
        allow_missing: bool = False,
    ):
        cfg = cfg.clone() if isinstance(cfg, CfgNode) else load_config(str(cfg))
        cfg.defrost()
        cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        if not cfg.MODEL.WEIGHTS:
            raise InputError("Inference needs a trained model: set MODEL.WEIGHTS to its checkpoint.")
        choose_device(cfg)
        _use_counts_beside_weights(cfg)
        fit_to_data(cfg)
        self.cfg = cfg
        self.batch_size = batch_size
        self.model = build_model(cfg).eval().requires_grad_(False)
        LongTailCheckpointer(self.model, require_all=True, allow_missing=allow_missing).load(cfg.MODEL.WEIGHTS)
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.thresholds = _read_thresholds(cfg, thresholds)
        self.metadata = MetadataCatalog.get((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, "__unused")[0])

    @property
    def category_ids(self) -> Dict[int, int]:
        """The data set's category id of each label ``0..K-1``; counted from 1 where no data set is at hand."""
        known = self.metadata.get("thing_dataset_id_to_contiguous_id")
        if known:
            return {label: category_id for category_id, label in known.items()}
        return {label: label + 1 for label in range(self.cfg.MODEL.ROI_HEADS.NUM_CLASSES)}

    @property
    def class_names(self) -> List[str]:
        """The K names of the classes; "class 1" and on where no data set is at hand."""
        known = self.metadata.get("thing_classes")
        return list(known or (f"class {category_id}" for category_id in self.category_ids.values()))

    def __call__(self, image: np.ndarray) -> Instances:
        """Return the detections of one image, on the CPU.

        Args:
            image: uint8 ``[H, W, 3]`` in BGR, as OpenCV reads it.
        """
        return next(self.predict([image]))

    @torch.no_grad()
    def predict(self, images: Iterable[np.ndarray], paste_masks: bool = True) -> Iterator[Instances]:
        """Yield the detections of each image, in order, on the CPU; ``batch_size`` images go through the model at once.

        Args:
            images: uint8 ``[H, W, 3]`` each, in BGR.
            paste_masks: whether ``pred_masks`` is a bool tensor ``[N, H, W]``, or else the probabilities within the
                boxes (``ROIMasks``), which :meth:`draw` and
                :func:`~eql_d2.evaluation.instances.instances_to_results` take as well.
        """
        batch: List[Dict[str, Any]] = []
        for image in images:
            batch.append({**self.example(image), "paste_masks": paste_masks})
            if len(batch) == self.batch_size:
                yield from self._forward(batch)
                batch = []
        if batch:
            yield from self._forward(batch)

    def example(self, image: np.ndarray) -> Dict[str, Any]:
        """Return what the model takes of an image, uint8 BGR ``[H, W, 3]``: ``image`` float32 ``[3, H', W']``, resized,
        and ``height`` and ``width`` before."""
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "RGB":
            image = image[:, :, ::-1]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)).astype("float32"))
        return {"image": tensor, "height": height, "width": width}

    def _forward(self, batch: Sequence[Dict[str, Any]]) -> List[Instances]:
        found = [output["instances"].to("cpu") for output in self.model(batch)]
        if self.thresholds is None:
            return found
        return [instances[instances.scores >= self.thresholds[instances.pred_classes]] for instances in found]

    def draw(self, image: np.ndarray, instances: Instances, confidence_threshold: float = 0.0) -> np.ndarray:
        """Return the image with the detections above a score drawn in, with class names; uint8 BGR ``[H, W, 3]``."""
        kept = instances[instances.scores > confidence_threshold]
        if kept.has("pred_masks") and isinstance(kept.pred_masks, ROIMasks):
            kept.pred_masks = kept.pred_masks.to_bitmasks(kept.pred_boxes, *kept.image_size).tensor
        visualizer = Visualizer(image[:, :, ::-1], self.metadata, instance_mode=ColorMode.IMAGE)
        return visualizer.draw_instance_predictions(kept).get_image()[:, :, ::-1]


def _read_thresholds(cfg: CfgNode, path: Union[str, Path, None]) -> Optional[Tensor]:
    """Return the thresholds of a file, by default of that beside the weights; ``None`` for none."""
    beside = RunFolder(Path(cfg.MODEL.WEIGHTS).parent).thresholds_file
    if path is None or (not path and not beside.is_file()):
        return None
    values = Thresholds.load(path or beside).values()
    if len(values) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"{path or beside} has thresholds of {len(values)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; choose them with eql-d2 thresholds on detections of this model."
        )
    return torch.tensor(values)


def _use_counts_beside_weights(cfg: CfgNode) -> None:
    """Register the config's data sets; where they are absent, take the counts that training left with the weights."""
    beside = RunFolder(Path(cfg.MODEL.WEIGHTS).parent).frequency_file
    try:
        register_from_config(cfg)
    except InputError:
        if not beside.is_file():
            raise
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    if not cfg.MODEL.LONG_TAIL.FREQUENCY and beside.is_file():
        cfg.MODEL.LONG_TAIL.FREQUENCY = str(beside)
