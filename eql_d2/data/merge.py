"""One file in LVIS format of several data sets: one label space, each image with what its source verified.

A mapping file says which data sets, and which of their categories is which of the merged file's
(``docs/merged_data.md``). What is written is an ordinary file in LVIS format with ``sources``
(:class:`~eql_d2.data.image_labels.ImageSource`), which everything else takes as it is.
"""

import logging
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set

import msgspec
import numpy as np
import pycocotools.mask as mask_util

from eql_d2.data.annotations import Annotation, Image, PathLike
from eql_d2.data.image_files import image_key
from eql_d2.data.image_labels import ImageSource
from eql_d2.data.lvis import choose_file_naming
from eql_d2.data.merge_mapping import MergedSource, MergeMapping, TargetCategories, map_categories
from eql_d2.data.merge_sources import SourceContent, read_source
from eql_d2.data.records import image_record
from eql_d2.errors import InputError
from eql_d2.files import whole_file

logger = logging.getLogger("detectron2.eql_d2.data")


@dataclass
class SourceReport:
    """What became of one data set.

    Attributes:
        name: of the source.
        images: that it brought.
        annotations: that are in the merged file.
        left_out: of categories that are in no class of the merged file.
        elsewhere: of images that are not in the set it adds to.
        verified_absent: dropped, because the image they are in says that it does not show the class.
        doubled: dropped, because the image has the same object already.
        classes: of the merged file that it knows.
    """

    name: str
    classes: int
    images: int = 0
    annotations: int = 0
    left_out: int = 0
    elsewhere: int = 0
    verified_absent: int = 0
    doubled: int = 0

    def __str__(self) -> str:
        dropped = {
            "of categories left out": self.left_out,
            "in images that the other set lacks": self.elsewhere,
            "of classes verified absent": self.verified_absent,
            "that were there already": self.doubled,
        }
        words = ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count)
        kept = f"{self.images:,} images, {self.annotations:,} annotations, {self.classes} classes"
        return f"{self.name}: {kept}" + (f"; not taken: {words}" if words else "")


@dataclass
class _Merged:
    """The merged file while it grows."""

    images: Dict[int, Dict[str, Any]] = field(default_factory=dict)
    annotations: List[Dict[str, Any]] = field(default_factory=list)
    sources: List[ImageSource] = field(default_factory=list)

    def add_annotation(self, one: Annotation, area: Optional[float], image_id: int, category_id: int) -> None:
        record = {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": list(one.bbox),
            "area": one.bbox[2] * one.bbox[3] if area is None else area,
        }
        if one.iscrowd is not None:
            record["iscrowd"] = int(one.iscrowd)
        if bytes(one.segmentation):
            record["segmentation"] = one.segmentation
        self.annotations.append(record)


def merge_files(mapping: MergeMapping, output: PathLike, root: str) -> List[SourceReport]:
    """Merge data sets and write the file.

    Args:
        mapping: what is merged, and how.
        output: the json to write; it appears whole or not at all.
        root: where relative paths of the mapping start, and the folder below which all images lie: the merged set's
            image folder.

    Returns:
        What became of each data set, in order.

    Raises:
        InputError: if a file is missing or damaged, categories are unknown, doubled or not mapped (all of them are
            named), or an image lies outside of ``root``.
    """
    brought = [read_source(source, root) for source in mapping.sources]
    categories = [one.categories for one in brought]
    targets = TargetCategories.of(mapping, categories, root)
    merged, reports = _Merged(), []
    for source, one, classes in zip(mapping.sources, brought, map_categories(mapping, categories, targets)):
        report = SourceReport(source.name, len(set(classes.values())))
        if source.adds_to:
            _add_to(merged, mapping, source, one, classes, report)
        else:
            _add_images(merged, source, one, classes, report, root)
        reports.append(report)
    _write(output, merged, targets.records(merged.annotations))
    return reports


def _add_images(
    merged: _Merged,
    source: MergedSource,
    brought: SourceContent,
    classes: Dict[int, int],
    report: SourceReport,
    root: str,
) -> None:
    """Add the images of a source, with its annotations and what they verify."""
    content = brought.content
    exhaustive = source.exhaustive_ids(content)
    of_target: Dict[int, Set[int]] = defaultdict(set)
    for category_id, target in classes.items():
        of_target[target].add(category_id)
    has_masks = any(bytes(one.segmentation) for one in content.annotations or ())
    known = sorted(target for target, ids in of_target.items() if ids <= exhaustive)
    merged.sources.append(ImageSource(source.name, known, has_masks))

    folder = os.path.join(root, source.images)
    naming = choose_file_naming(folder, image_record(content.images[0]), anywhere=True)
    new_ids: Dict[int, int] = {}
    next_id = max([*merged.images, *(image.id for image in content.images)], default=0) + 1
    for image in content.images:
        new_ids[image.id] = image.id
        if image.id in merged.images:
            new_ids[image.id], next_id = next_id, next_id + 1
        negative = set(image.neg_category_ids or ())
        record = {
            "id": new_ids[image.id],
            "file_name": _below(naming(image_record(image)), root, source, image),
            "height": image.height,
            "width": image.width,
            "source": source.name,
            "neg_category_ids": sorted(target for target, ids in of_target.items() if ids <= negative),
            "not_exhaustive_category_ids": sorted(
                {classes[id_] for id_ in image.not_exhaustive_category_ids or () if id_ in classes}
            ),
        }
        merged.images[new_ids[image.id]] = record
    report.images = len(new_ids)
    for one, area in brought.annotations():
        if one.category_id not in classes:
            report.left_out += 1
        elif one.image_id in new_ids:
            merged.add_annotation(one, area, new_ids[one.image_id], classes[one.category_id])
            report.annotations += 1


def _below(path: str, root: str, source: MergedSource, image: Image) -> str:
    relative = os.path.relpath(path, root)
    if relative.split(os.sep)[0] == os.pardir:
        raise InputError(
            f"source {source.name!r}: image {image.id} is {path}, which is not below {root}, the image folder of the "
            f"merged set; name a root that all images are below."
        )
    return Path(relative).as_posix()


def _add_to(
    merged: _Merged,
    mapping: MergeMapping,
    source: MergedSource,
    brought: SourceContent,
    classes: Dict[int, int],
    report: SourceReport,
) -> None:
    """Add a source's annotations to the images of another one, as Detic adds COCO's boxes to LVIS (arXiv 2201.02605).

    A box is dropped if its class is in the negative set of the image, or if the image has a box of the class already
    whose IoU with it reaches ``duplicate_iou``.
    """
    by, images = source.images_by, brought.content.images
    hosts = {
        image_key(by, record["id"], record["file_name"]): record
        for record in merged.images.values()
        if record["source"] == source.adds_to
    }
    here = {image.id: hosts.get(image_key(by, image.id, image.file_name or image.coco_url)) for image in images}
    if not any(here.values()):
        raise InputError(
            f"source {source.name!r} has none of the images of {source.adds_to!r}; they are matched by their "
            f"{by}, and images_by may be 'id' or 'file_name'."
        )
    there = defaultdict(list)  # without those of this source
    for record in merged.annotations:
        if not record.get("iscrowd"):
            there[record["image_id"], record["category_id"]].append(record["bbox"])
    for one, area in brought.annotations():
        host, target = here.get(one.image_id), classes.get(one.category_id)
        if target is None:
            report.left_out += 1
        elif host is None:
            report.elsewhere += 1
        elif mapping.drop_verified_absent and target in host["neg_category_ids"]:
            report.verified_absent += 1
        elif _is_there(there.get((host["id"], target)), one.bbox, mapping.duplicate_iou):
            report.doubled += 1
        else:
            merged.add_annotation(one, area, host["id"], target)
            if target in host["neg_category_ids"]:
                host["neg_category_ids"].remove(target)
            report.annotations += 1


def _is_there(boxes: Optional[List[Any]], box: Any, threshold: float) -> bool:
    """Whether one of some boxes has an IoU of at least the threshold with another; all are ``x, y, w, h``."""
    if boxes is None or threshold <= 0:
        return False
    overlaps = mask_util.iou(np.array(boxes, float), np.array([box], float), [0])
    return bool(np.max(overlaps) >= threshold)


def _write(output: PathLike, merged: _Merged, categories: List[Dict[str, Any]]) -> None:
    """Write the file piece by piece: the json of all annotations is not held beside them."""
    encode = msgspec.json.encode

    def entries(values: Any) -> Iterator[bytes]:
        for number, value in enumerate(values):
            yield (b",\n" if number else b"\n") + encode(value)

    with whole_file(output) as file:
        file.write(b'{"info": {"description": "merged by eql-d2 merge"}, "licenses": [],\n')
        file.write(b'"sources": ' + encode(merged.sources) + b',\n"categories": ' + encode(categories))
        for name, values in (("images", merged.images.values()), ("annotations", merged.annotations)):
            file.write(f',\n"{name}": ['.encode())
            file.writelines(entries(values))
            file.write(b"]")
        file.write(b"}\n")
