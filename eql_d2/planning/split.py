"""Parting annotated images into those to train on and those to validate on."""

from typing import Any, Dict, List, Tuple

import numpy as np

from eql_d2.data.annotations import read_annotations
from eql_d2.errors import InputError


def stratified_split(shows: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Choose images to validate on, by iterative stratification (Sechidis et al., ECML 2011), rare classes first.

    Afterwards images change sides until every class with two images or more is on both, and one with a single image is
    trained on, wherever that can be had; with many classes of few images more than ``share`` is validated on.

    Args:
        shows: bool ``[N, K]``, which classes an image shows.
        share: of the images, to validate on.
        seed: of what is drawn.

    Returns:
        Bool ``[N]``, true for the images to validate on.

    Raises:
        InputError: if the share is not between 0 and 1, or leaves a side without an image, or the library is missing.
    """
    if not 0 < share < 1 or not 0 < round(share * len(shows)) < len(shows):
        raise InputError(f"--split {share:g} of {len(shows)} images; it must leave images on both sides.")
    try:
        from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
    except ImportError:
        raise InputError(
            'A stratified split needs iterative-stratification: pip install "eql_d2[plan]". Without, give --val, or '
            "--split 0 to train on all images."
        ) from None
    # One column more, for images that show nothing, so that there are two at least.
    labels = np.concatenate([shows, ~shows.any(1, keepdims=True)], axis=1)
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    _, chosen = next(splitter.split(labels, labels))
    validated = np.zeros(len(shows), dtype=bool)
    validated[chosen] = True
    counts = shows.sum(0)
    rarest_first = np.argsort(counts, kind="stable")
    for label in rarest_first[counts[rarest_first] >= 1]:
        if not shows[~validated, label].any():
            _move(shows, validated, label, to=False)
    for label in rarest_first[counts[rarest_first] >= 2]:
        if not shows[validated, label].any():
            _move(shows, validated, label, to=True)
    return validated


def _move(shows: np.ndarray, validated: np.ndarray, label: int, to: bool) -> None:
    """Move an image with the class to the side that has none, in place, unless the training would lose a class."""
    here, there = shows[validated != to].sum(0), shows[validated == to].sum(0)
    candidates = np.flatnonzero(shows[:, label] & (validated != to))
    if to:
        candidates = np.array([one for one in candidates if (here[shows[one]] > 1).all()], dtype=np.int64)
    if len(candidates):
        missing = (shows[candidates] & (there == 0)).sum(1)
        # The one that brings most of what is missing; of those, the one with the fewest classes.
        best = np.lexsort((shows[candidates].sum(1), -missing))[0]
        validated[candidates[best]] = to


def split_content(content: Dict[str, Any], share: float, seed: int = 0) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Part the content of a json in COCO or LVIS format; see :func:`stratified_split`.

    The category records of both parts say how often the one to train on has each, so that the same classes are rare,
    common and frequent in both.
    """
    rows = {image["id"]: row for row, image in enumerate(content["images"])}
    columns = {category["id"]: column for column, category in enumerate(content["categories"])}
    shows = np.zeros((len(rows), len(columns)), dtype=bool)
    for one in content["annotations"]:
        if one["image_id"] in rows and not one.get("iscrowd"):
            shows[rows[one["image_id"]], columns[one["category_id"]]] = True
    validated = stratified_split(shows, share, seed)
    train, val = ({**content, **_part(content, rows, validated == side)} for side in (False, True))
    train["categories"] = val["categories"] = counted(train)
    return train, val


def _part(content: Dict[str, Any], rows: Dict[int, int], kept: np.ndarray) -> Dict[str, Any]:
    objects = content["annotations"]
    return {
        "images": [image for image in content["images"] if kept[rows[image["id"]]]],
        "annotations": [one for one in objects if one["image_id"] in rows and kept[rows[one["image_id"]]]],
    }


def without_images_of(content: Dict[str, Any], other: Dict[str, Any]) -> Dict[str, Any]:
    """Return the content of a json without the images that another one has too, told by file name or address.

    The very same object is returned where there are none.
    """
    theirs = {_name(image) for image in other["images"]}
    shared = {image["id"] for image in content["images"] if _name(image) in theirs}
    if not shared:
        return content
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] not in shared],
        "annotations": [one for one in content["annotations"] if one["image_id"] not in shared],
    }


def _name(image: Dict[str, Any]) -> str:
    return image.get("coco_url") or image["file_name"]


def frequent_enough(content: Dict[str, Any], min_images: int) -> Dict[str, Any]:
    """Return the content of a json without the categories that are in fewer than ``min_images`` images.

    Raises:
        InputError: if none is left.
    """
    counts = {one["id"]: one["image_count"] for one in counted(content)}
    kept = {category_id for category_id, count in counts.items() if count >= min_images}
    if not kept:
        raise InputError(f"--min-images {min_images}: no category is in so many images.")
    return only_categories(content, [one for one in counted(content) if one["id"] in kept])


def only_categories(content: Dict[str, Any], categories: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Return the content of a json with these category records, and without what it says of other categories."""
    kept = {one["id"] for one in categories}
    images = []
    for image in content["images"]:
        sets = {key: image[key] for key in ("neg_category_ids", "not_exhaustive_category_ids") if key in image}
        images.append({**image, **{key: [one for one in ids if one in kept] for key, ids in sets.items()}})
    return {
        **content,
        "images": images,
        "annotations": [one for one in content["annotations"] if one["category_id"] in kept],
        "categories": categories,
    }


def counted(content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return the category records with the counts of this content, in which letters r, c and f stay as they are."""
    counts = read_annotations(content).counts()
    by_id = sorted(content["categories"], key=lambda one: one["id"])
    return [
        {**one, "image_count": images, "instance_count": instances}
        for one, images, instances in zip(by_id, counts.image_count, counts.instance_count)
    ]
