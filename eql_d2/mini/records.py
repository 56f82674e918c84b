"""The records of a generated data set in LVIS v0.5's format, and what such a set is like."""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from eql_d2.data.groups import COMMON_MAX_IMAGES, GROUPS, frequency_group

JPEG_QUALITY = 92


def info_record(description: str, version: int) -> Dict[str, Any]:
    """Return the ``info`` of a json."""
    return {
        "description": description,
        "url": "",
        "version": str(version),
        "year": 2026,
        "contributor": "eql_d2",
        "date_created": "",
    }


def square_image_record(
    image_id: int, image_size: int, negatives: Sequence[int], not_exhaustive: Sequence[int]
) -> Dict[str, Any]:
    """Return the record of a square image.

    Args:
        image_id: also its file's name.
        image_size: side in pixels.
        negatives: labels (0-based) of the classes verified absent.
        not_exhaustive: labels of the classes whose annotation is not exhaustive.
    """
    return {
        "id": image_id,
        "file_name": f"{image_id:012d}.jpg",
        "height": image_size,
        "width": image_size,
        "neg_category_ids": [label + 1 for label in negatives],
        "not_exhaustive_category_ids": sorted(label + 1 for label in not_exhaustive),
    }


def annotation_record(
    annotation_id: int, image_id: int, label: int, outline: np.ndarray, image_size: int
) -> Dict[str, Any]:
    """Return the record of an object; its area is that of pycocotools' mask, its box the extent of its polygon.

    Args:
        annotation_id: unique in its split.
        image_id: of its image.
        label: of its class, 0-based.
        outline: ``[P, 2]``, x and y in pixels.
        image_size: side of the image in pixels.
    """
    polygon = outline.reshape(-1).tolist()
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    rle = mask_utils.merge(mask_utils.frPyObjects([polygon], image_size, image_size))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "segmentation": [polygon],
        "area": float(mask_utils.area(rle)),
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
    }


def category_records(
    names: Sequence[str],
    definition: str,
    train_annotations: Sequence[Dict[str, Any]],
    common_max_images: int = COMMON_MAX_IMAGES,
) -> List[Dict[str, Any]]:
    """Return the category records, the same for all splits, with the counts of the training set.

    Args:
        names: of the K classes; their ids are 1..K.
        definition: what a class is, with ``{}`` in the place of its name.
        train_annotations: counted.
        common_max_images: a class in more training images is frequent.
    """
    instance_count = Counter(annotation["category_id"] for annotation in train_annotations)
    image_count = Counter(category_id for _, category_id in image_category_pairs(train_annotations))
    return [
        {
            "id": category_id,
            "name": name,
            "synset": f"{name.replace(' ', '_')}.n.01",
            "def": definition.format(name),
            "synonyms": [name],
            "frequency": frequency_group(image_count[category_id], common_max_images),
            "image_count": image_count[category_id],
            "instance_count": instance_count[category_id],
        }
        for category_id, name in enumerate(names, start=1)
    ]


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write a uint8 BGR image ``[H, W, 3]``, or a grey one ``[H, W]``, as a JPEG or PNG file, by its suffix.

    Raises:
        OSError: if that is not possible.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    ok, encoded = cv2.imencode(path.suffix, pixels, options)
    if not ok:
        raise OSError(f"OpenCV cannot encode {path.name}")
    # imwrite returns false on a full disk; this raises.
    path.write_bytes(encoded.tobytes())


def lvis_statistics(content: Dict[str, Any]) -> Dict[str, float]:
    """Return the figures by which a data set in LVIS format is long-tailed and federated.

    Args:
        content: a parsed json with images, annotations and categories, the latter with frequency letters.

    Returns:
        Number of images, annotations, categories, and of categories r, c, f; per image the mean number of annotated
        classes, instances, verified absent and not exhaustively annotated classes; the fewest and most images that
        a category is annotated in.
    """
    images, annotations, categories = content["images"], content["annotations"], content["categories"]
    pairs = Counter(category_id for _, category_id in image_category_pairs(annotations))
    per_category = [pairs[category["id"]] for category in categories]
    letters = Counter(category["frequency"] for category in categories)
    return {
        "images": len(images),
        "annotations": len(annotations),
        "categories": len(categories),
        **{group: letters[group] for group in GROUPS},
        "fewest images of a category": min(per_category),
        "most images of a category": max(per_category),
        "categories per image": sum(per_category) / len(images),
        "instances per image": len(annotations) / len(images),
        "negative categories per image": sum(len(image["neg_category_ids"]) for image in images) / len(images),
        "not exhaustive categories per image": sum(len(image["not_exhaustive_category_ids"]) for image in images)
        / len(images),
    }


def image_category_pairs(annotations: Sequence[Dict[str, Any]]) -> Set[Tuple[int, int]]:
    """Return each image's id with the id of each category that is annotated in it."""
    return {(annotation["image_id"], annotation["category_id"]) for annotation in annotations}
