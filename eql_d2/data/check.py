"""Checking a data set: its files, counts, ids, polygons and image-level labels."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from detectron2.data import MetadataCatalog

from eql_d2.data.annotations import (
    Annotation,
    AnnotationFile,
    Image,
    PathLike,
    decode_segmentation,
    duplicates,
    parse_annotations,
    readable_json,
    wrong_values,
)
from eql_d2.data.ground_truth import doubled_annotations, ids_without_area
from eql_d2.data.image_files import load_image, upright_size
from eql_d2.data.image_labels import positive_ids, wrong_sources
from eql_d2.data.lvis import FileNaming, choose_file_naming
from eql_d2.data.records import image_record
from eql_d2.data.segmentation import is_valid_polygon
from eql_d2.errors import InputError

#: The published sizes of LVIS: images, categories, instances (``None``: the json has none).
OFFICIAL_COUNTS: Dict[str, Tuple[int, int, Optional[int]]] = {
    "lvis_v0.5_train": (57263, 1230, 693958),
    "lvis_v0.5_val": (5000, 1230, None),
    "lvis_v1_train": (100170, 1203, 1270141),
    "lvis_v1_val": (19809, 1203, 244707),
}
_VOCABULARY = {1230: "LVIS v0.5", 1203: "LVIS v1"}

# Coordinates of polygons that follow an image's border are rounded; LVIS has them up to this far outside.
_BORDER_TOLERANCE = 1.0


@dataclass
class Finding:
    """One kind of thing that is wrong.

    Attributes:
        what: the kind, a sentence.
        is_error: whether training or evaluation would fail or be wrong; else it is merely worth knowing.
        examples: the first few cases.
        count: how many cases there are.
    """

    what: str
    is_error: bool = True
    examples: List[str] = field(default_factory=list)
    count: int = 0


class Report:
    """Collects findings, with at most ``max_examples`` examples each."""

    def __init__(self, max_examples: int = 5):
        self.max_examples = max_examples
        self.findings: Dict[str, Finding] = {}
        self.summary: List[str] = []

    def add(self, what: str, example: Any = "", is_error: bool = True) -> None:
        """Count one more case of ``what``."""
        finding = self.findings.setdefault(what, Finding(what, is_error))
        finding.count += 1
        if example != "" and len(finding.examples) < self.max_examples:
            finding.examples.append(str(example))

    @property
    def has_errors(self) -> bool:
        """Whether anything is wrong that training or evaluation would trip over."""
        return any(finding.is_error for finding in self.findings.values())

    def lines(self) -> List[str]:
        """Return the report as text, errors first."""
        lines = list(self.summary)
        for finding in sorted(self.findings.values(), key=lambda finding: not finding.is_error):
            lines.append(f"{'ERROR' if finding.is_error else 'note'}: {finding.what}: {finding.count}")
            lines.extend(f"    {example}" for example in finding.examples)
            if 0 < len(finding.examples) < finding.count:
                lines.append(f"    and {finding.count - len(finding.examples)} more")
        lines.append("There are errors." if self.has_errors else "No errors found.")
        return lines


def check_dataset(
    json_file: PathLike,
    image_root: Optional[PathLike],
    name: str = "",
    max_examples: int = 5,
    progress: Callable[[Iterable[Image]], Iterable[Image]] = iter,
) -> Report:
    """Check a data set in LVIS or COCO format.

    Args:
        json_file: the annotations.
        image_root: the image folder; ``None`` leaves the images unchecked.
        name: of an official LVIS set, whose counts are then compared with the published ones, or another registered
            one, of which it is taken whether its images may lie anywhere.
        max_examples: examples of each kind of finding.
        progress: wraps the images while their files are read, for a progress bar.

    Raises:
        InputError: if the json cannot be parsed; everything else is in the report.
    """
    report = Report(max_examples)
    with readable_json(json_file):
        content = parse_annotations(Path(json_file).read_bytes(), json_file)
    _summarize(content, json_file, report)
    _check_official_counts(content, name or Path(json_file).stem, report)
    _check_ids(content, report)
    values = list(wrong_values(content))
    for wrong in values:
        report.add("values that nothing can be computed with (mend them first: masks and images were not read)", wrong)
    if values:
        return report
    _check_annotations(content, json_file, report)
    _check_areas(json_file, report)
    _check_categories_used(content, report)
    if content.has_image_labels:
        _check_image_labels(content, report)
    if image_root is not None and content.images:
        anywhere = bool(name and MetadataCatalog.get(name).get("images_anywhere"))
        _check_images(content, os.fspath(image_root), anywhere, report, progress)
    return report


def _summarize(content: AnnotationFile, json_file: PathLike, report: Report) -> None:
    report.summary.append(f"{json_file}: {'LVIS' if content.is_lvis else 'COCO'} format")
    annotations = "no annotations" if content.annotations is None else f"{len(content.annotations)} annotations"
    vocabulary = _VOCABULARY.get(len(content.categories))
    report.summary.append(
        f"{len(content.images)} images, {len(content.categories)} categories"
        f"{f' (as {vocabulary})' if vocabulary else ''}, {annotations}"
    )
    if not content.images:
        report.add("the json lists no image")
    if not content.categories:
        report.add("the json lists no category")


def _check_official_counts(content: AnnotationFile, name: str, report: Report) -> None:
    num_images, num_categories, num_annotations = OFFICIAL_COUNTS.get(name, (None, None, None))
    found = len(content.categories)
    expected_vocabulary = next((size for size, title in _VOCABULARY.items() if _is_named(name, title)), num_categories)
    if expected_vocabulary is not None and found != expected_vocabulary:
        confusion = f"; this is the vocabulary of {_VOCABULARY[found]}" if found in _VOCABULARY else ""
        report.add(
            "the number of categories is not that of the data set's name "
            "(LVIS v0.5 has 1230 and v1 has 1203, with other ids and names: annotations, models and results of one "
            "cannot be used with the other)",
            f"{name} should have {expected_vocabulary} categories, found {found}{confusion}",
        )
    counts = (("images", num_images, content.images), ("annotations", num_annotations, content.annotations or ()))
    for what, expected, entries in counts:
        if expected is not None and len(entries) != expected:
            report.add(
                "a count is not the published one (an incomplete download or another file)",
                f"{name} should have {expected} {what}, found {len(entries)}",
            )


def _is_named(name: str, title: str) -> bool:
    """Whether a data set's name says that it is ``LVIS v0.5`` or ``LVIS v1``."""
    return name.startswith(title.lower().replace(" ", "_"))


def _check_ids(content: AnnotationFile, report: Report) -> None:
    for kind, entries in (
        ("image", content.images),
        ("category", content.categories),
        ("annotation", content.annotations or ()),
    ):
        for repeated in duplicates(entry.id for entry in entries):
            report.add(f"{kind} ids that occur more than once", f"{kind} id {repeated}")
    for annotation_id in doubled_annotations(content):
        report.add(
            "annotations that repeat another one: same image, category, box and segmentation (each counts)",
            f"annotation {annotation_id}",
            is_error=False,
        )
    for name in duplicates(category.name for category in content.categories):
        report.add("category names that occur more than once", name, is_error=False)


def _check_annotations(content: AnnotationFile, json_file: PathLike, report: Report) -> None:
    images = {image.id: image for image in content.images}
    category_ids = set(content.contiguous_ids)
    without_mask: List[str] = []
    num_masks = 0
    for annotation in content.annotations or ():
        if annotation.category_id not in category_ids:
            report.add(
                "annotations whose category_id is not in 'categories'",
                f"annotation {annotation.id}: category_id {annotation.category_id}",
            )
        if annotation.ignore:
            report.add(
                "annotations with 'ignore', which is not supported (use iscrowd 1 for a region to be ignored)",
                f"annotation {annotation.id}: ignore {annotation.ignore}",
            )
        image = images.get(annotation.image_id)
        if image is None:
            report.add(
                "annotations whose image_id is not in 'images' (they are not used)",
                f"annotation {annotation.id}: image_id {annotation.image_id}",
                is_error=False,
            )
            continue
        _check_box(annotation, image, report)
        try:
            segmentation = decode_segmentation(annotation, image, json_file)
        except InputError as error:
            report.add("segmentations that are neither polygons nor a run-length mask of their image", error)
            continue
        if isinstance(segmentation, list):
            _check_polygons(segmentation, annotation, image, report)
        if segmentation is not None:
            num_masks += 1
        elif not annotation.iscrowd:
            without_mask.append(f"annotation {annotation.id} of image {image.id}")
    for where in without_mask if num_masks else ():
        report.add(
            "instances without a segmentation where others have one (MODEL.MASK_ON False trains on boxes)", where
        )


def _check_areas(json_file: PathLike, report: Report) -> None:
    try:
        lacking = ids_without_area(json_file)
    except InputError as error:
        report.add("areas that are negative or no number", error)
        return
    for annotation_id in lacking:
        report.add("annotations without an area, which evaluation needs", f"annotation {annotation_id}")


def _check_box(annotation: Annotation, image: Image, report: Report) -> None:
    x, y, width, height = annotation.bbox
    where = f"annotation {annotation.id} of image {image.id}: bbox {list(annotation.bbox)}"
    if width <= 0 or height <= 0:
        report.add("boxes without an area (Detectron2 leaves them out of training)", where, is_error=False)
    elif _outside((x, x + width), image.width) or _outside((y, y + height), image.height):
        report.add("boxes that reach out of their image", f"{where}, image {image.width} x {image.height}")


def _check_polygons(polygons: List[List[float]], annotation: Annotation, image: Image, report: Report) -> None:
    where = f"annotation {annotation.id} of image {image.id}"
    valid = [polygon for polygon in polygons if is_valid_polygon(polygon)]
    if len(valid) < len(polygons):
        report.add("instances with a polygon of less than 3 points", f"{where}: {len(polygons) - len(valid)} such")
    if any(_outside(polygon[::2], image.width) or _outside(polygon[1::2], image.height) for polygon in valid):
        report.add(
            "instances with a polygon that reaches out of its image",
            f"{where}, image {image.width} x {image.height}",
        )


def _outside(coordinates: Iterable[float], size: int) -> bool:
    coordinates = list(coordinates)
    return min(coordinates) < -_BORDER_TOLERANCE or max(coordinates) > size + _BORDER_TOLERANCE


def _check_categories_used(content: AnnotationFile, report: Report) -> None:
    known = set(content.contiguous_ids)
    if not content.has_annotations or any(one.category_id not in known for one in content.annotations or ()):
        return
    counts = content.counts()
    for category, image_count in zip(content.sorted_categories, counts.image_count):
        if image_count == 0:
            report.add(
                "categories without an instance (they cannot be learnt or evaluated)",
                f"category {category.id}: {category.name}",
                is_error=False,
            )
    if content.is_lvis and not counts.groups_are_given:
        report.add("the categories have no frequency letters; r, c and f are derived from the counts", is_error=False)


def _check_image_labels(content: AnnotationFile, report: Report) -> None:
    category_ids = set(content.contiguous_ids)
    for wrong in wrong_sources(content.sources, content.images, category_ids):
        report.add("sources that do not fit the images or the categories", wrong)
    by_image = content.annotations_by_image()
    for image in content.images:
        negative = image.neg_category_ids or []
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = getattr(image, name) or []
            unknown = sorted(set(ids) - category_ids)
            if unknown:
                report.add(f"images with an id in {name} that is not in 'categories'", f"image {image.id}: {unknown}")
            if len(set(ids)) < len(ids):
                report.add(f"images with an id twice in {name}", f"image {image.id}: {duplicates(ids)}", is_error=False)
        both = sorted(set(negative) & set(positive_ids(by_image[image.id])))
        if both:
            report.add(
                "images with a category in neg_category_ids that they also show", f"image {image.id}: category {both}"
            )


def _check_images(
    content: AnnotationFile,
    image_root: str,
    anywhere: bool,
    report: Report,
    progress: Callable[[Iterable[Image]], Iterable[Image]],
) -> None:
    images = sorted(content.images, key=lambda image: image.id)
    if content.is_lvis:
        file_path = choose_file_naming(image_root, image_record(images[0]), anywhere)
    else:
        file_path = FileNaming(image_root, "file_name", anywhere)
    report.summary.append(f"image files by the rule: {file_path.rule}, below {image_root}")
    for image in progress(images):
        try:
            path = file_path(image_record(image))
        except InputError as error:
            report.add("image names that lead out of the image folder", str(error))
            continue
        size = try_image(path, report)
        if size is not None and size != (image.width, image.height):
            report.add(
                "images of another size than the json says (width, height)",
                f"{path}: {size}, json {(image.width, image.height)}",
            )


def try_image(path: str, report: Report) -> Optional[Tuple[int, int]]:
    """Read an image file as a whole; return its width and height, upright, or ``None`` if the report says why not."""
    try:
        return upright_size(load_image(path))
    except FileNotFoundError:
        report.add("image files that are not there", path)
    except OSError as error:
        report.add("image files that cannot be read", f"{path}: {error}")
    return None
