"""From a model's ``Instances`` to detections in the submission format."""

from typing import Any, Dict, List, Mapping

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode, Instances


def instances_to_results(instances: Instances, image_id: int, category_ids: Mapping[int, int]) -> List[Dict[str, Any]]:
    """Return one record for each detection, box and mask in the same record.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` (contiguous) and, for masks, ``pred_masks``, a
            bool tensor ``[N, H, W]``; on any device.
        image_id: of the annotation file.
        category_ids: the annotation file's id of each contiguous class.
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.cpu(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    classes = instances.pred_classes.tolist()
    records = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(classes, boxes, instances.scores.tolist())
    ]
    if instances.has("pred_masks"):
        for record, mask in zip(records, instances.pred_masks):
            record["segmentation"] = encode_mask(mask.cpu().numpy())
    return records


def encode_mask(mask: np.ndarray) -> Dict[str, Any]:
    """Return a bool mask ``[H, W]`` as run lengths with ``counts`` as text, as json needs it."""
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
