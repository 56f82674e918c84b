"""Reading the data sets of a merge: files in LVIS or COCO format, or Open Images' as if they were in LVIS format."""

import os
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

import msgspec

from eql_d2.data.annotations import (
    Annotation,
    AnnotationFile,
    Category,
    Image,
    check_content,
    parse_annotations,
    readable_json,
)
from eql_d2.data.merge_mapping import MergedSource, Records
from eql_d2.data.open_images import load_open_images
from eql_d2.data.open_images_table import OpenImagesFiles
from eql_d2.errors import InputError


class SourceContent(NamedTuple):
    """What a data set brings.

    Attributes:
        content: checked.
        categories: as the file has them, by ascending id.
        areas: of each annotation; ``None`` where the file has none.
    """

    content: AnnotationFile
    categories: Records
    areas: List[Optional[float]]

    def annotations(self) -> Iterator[Tuple[Annotation, Optional[float]]]:
        """Yield each annotation with its area."""
        return zip(self.content.annotations or (), self.areas)


class _Area(msgspec.Struct, gc=False):
    area: Optional[float] = None


class _Rest(msgspec.Struct):
    """What the reader of annotations leaves out and a merged file keeps."""

    annotations: List[_Area]
    categories: Records


def read_source(source: MergedSource, root: str) -> SourceContent:
    """Read a data set of a merge; relative paths start at ``root``.

    Raises:
        InputError: if a file is missing or damaged, has no annotations or was merged itself.
    """
    if source.open_images is not None:
        return _read_open_images(source, root)
    path = os.path.join(root, source.json)
    with readable_json(path):
        encoded = Path(path).read_bytes()
    content = parse_annotations(encoded, path)
    check_content(content, path)
    if not content.has_annotations:
        raise InputError(f"{path} has no annotations; source {source.name!r} adds nothing to a merged set.")
    if content.sources:
        raise InputError(f"{path} was merged itself; name its own sources instead.")
    rest = msgspec.json.decode(encoded, type=_Rest)
    categories = sorted(rest.categories, key=lambda entry: entry["id"])
    return SourceContent(content, categories, [one.area for one in rest.annotations])


def _read_open_images(source: MergedSource, root: str) -> SourceContent:
    """Read Open Images' files: ids from 1 in the order of the classes and of the images.

    Group-of boxes become crowd regions, as UniDet has them. The negative set is that of the verified labels, with the
    classes below them; a class that is verified to be there and has no box is in neither set, and so exempt.
    """
    given = source.open_images
    assert given is not None
    paths = (
        path and os.path.join(root, path) for path in (given.boxes, given.classes, given.image_labels, given.hierarchy)
    )
    records = load_open_images(OpenImagesFiles(*paths), os.path.join(root, source.images))
    names = records.table.header.class_names  # type: ignore[attr-defined]
    images: List[Image] = []
    annotations: List[Annotation] = []
    for record in records:
        image_id, labels = record["image_id"] + 1, record.get("image_labels")
        absent = None if labels is None else sorted(k + 1 for k in {*labels["negative"]} - {*labels["positive"]})
        name = os.path.basename(record["file_name"])
        images.append(Image(image_id, record["height"], record["width"], name, neg_category_ids=absent))
        for one in record["annotations"]:
            left, top, right, bottom = one["bbox"]
            box = (left, top, right - left, bottom - top)
            crowd = 1 if one.get("is_group_of") == 1 else None
            annotations.append(Annotation(len(annotations) + 1, image_id, one["category_id"] + 1, box, iscrowd=crowd))
    categories = [Category(number, name) for number, name in enumerate(names, 1)]
    entries = [{"id": one.id, "name": one.name} for one in categories]
    return SourceContent(AnnotationFile(images, categories, annotations), entries, [None] * len(annotations))
