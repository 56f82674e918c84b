"""Detections in the formats of other programs: a COCO data set with scores, and YOLO's text files."""

from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple


def coco_dataset(
    images: Iterable[Tuple[int, str, int, int]],
    detections: Iterable[Mapping[str, Any]],
    category_ids: Mapping[int, int],
    class_names: Sequence[str],
) -> Dict[str, Any]:
    """Return a data set in COCO format whose annotations are detections, as tools for labelling and viewing read it.

    Args:
        images: id, file name, height and width in pixels of each, those without detections too.
        detections: in the submission format, with ``bbox`` ``[x, y, width, height]`` in pixels, ``score`` and, if there
            are masks, ``segmentation`` as run lengths.
        category_ids: id of each label ``0..K-1``.
        class_names: K names.
    """
    annotations = [
        {
            **detection,
            "id": number,
            "area": detection["bbox"][2] * detection["bbox"][3],
            "iscrowd": 0,
        }
        for number, detection in enumerate(detections, 1)
    ]
    return {
        "images": [{"id": i, "file_name": name, "height": height, "width": width} for i, name, height, width in images],
        "annotations": annotations,
        "categories": [{"id": category_ids[label], "name": name} for label, name in enumerate(class_names)],
    }


def yolo_lines(
    detections: Iterable[Mapping[str, Any]], height: int, width: int, labels: Mapping[int, int]
) -> List[str]:
    """Return one line for each detection of an image: label, centre x and y, width and height of the box, score.

    Lengths are shares of the image's; YOLO trains on the first five numbers, and takes the sixth for a confidence.

    Args:
        detections: as for :func:`coco_dataset`.
        height, width: of the image in pixels.
        labels: label ``0..K-1`` of each category id.
    """
    lines = []
    for detection in detections:
        x, y, w, h = detection["bbox"]
        values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height, detection["score"])
        lines.append(" ".join([str(labels[detection["category_id"]]), *(f"{value:.6f}" for value in values)]))
    return lines
