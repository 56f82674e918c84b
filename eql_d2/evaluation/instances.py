"""From a model's ``Instances`` to detections in the submission format."""

from typing import Any, Dict, List, Mapping

from detectron2.structures import BoxMode, Instances, ROIMasks

from eql_d2.evaluation.mask_encoding import encode_box_masks, encode_mask


def instances_to_results(instances: Instances, image_id: int, category_ids: Mapping[int, int]) -> List[Dict[str, Any]]:
    """Return one record for each detection, box and mask in the same record.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` (contiguous) and, for masks, ``pred_masks``, a
            bool tensor ``[N, H, W]`` or, many times faster, probabilities within the boxes (``ROIMasks``); on any
            device.
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
        masks = instances.pred_masks
        if isinstance(masks, ROIMasks):
            encoded = encode_box_masks(masks.tensor, instances.pred_boxes.tensor, *instances.image_size)
        else:
            encoded = [encode_mask(mask.cpu().numpy()) for mask in masks]
        for record, segmentation in zip(records, encoded):
            record["segmentation"] = segmentation
    return records
