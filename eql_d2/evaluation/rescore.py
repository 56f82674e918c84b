"""Score a results file without a model: what eql-d2 evaluate does."""

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from eql_d2.data.annotations import check_content, read_annotations
from eql_d2.errors import InputError
from eql_d2.evaluation.report import (
    category_rows,
    count_column,
    format_metrics,
    plot_categories,
    write_category_csv,
    write_category_json,
)
from eql_d2.evaluation.results_file import first_record
from eql_d2.evaluation.sources import evaluate_sources

_DEFAULT_CAP = {"lvis": 300, "coco": 100}
_WRITERS = {".csv": write_category_csv, ".json": write_category_json}


def rescore(
    results: Path,
    annotations: Path,
    iou_type: Optional[Sequence[str]] = None,
    fixed: bool = False,
    per_category: Optional[Path] = None,
    plot: Optional[Path] = None,
    max_detections: Optional[int] = None,
    backend: str = "auto",
    train_json: Optional[Path] = None,
) -> str:
    """Score a results file, write what is asked for, and return the table of metrics in Markdown.

    Args:
        results: detections in the official submission format.
        annotations: the annotation file, in LVIS or COCO format.
        iou_type: "bbox" and/or "segm"; what the first detection carries, if not given.
        fixed: add AP-fixed (LVIS only).
        per_category: where to write AP of each category, as ``.csv`` or ``.json``.
        plot: where to draw AP of each category against its images.
        max_detections: detections that count; 300 for LVIS and 100 for COCO if not given, negative for all.
        backend: "auto", "hotcoco" or "lvis".
        train_json: training annotations, for groups and training counts; if not given, the letters and
            ``image_count`` in the category records of ``annotations``.

    Raises:
        InputError: for files that are missing, damaged or do not fit each other.
    """
    _check_table_name(per_category)
    content = read_annotations(annotations)
    protocol = "lvis" if content.is_lvis else "coco"
    del content
    groups, training_counts = _training_set(train_json) if train_json is not None else ({}, None)
    by_source = evaluate_sources(
        annotations,
        results,
        iou_type or iou_types_of(results),
        fixed=(False, True) if fixed else (False,),
        backend=backend,
        max_detections=_DEFAULT_CAP[protocol] if max_detections is None else max_detections,
        groups=groups,
        protocol=protocol,
    )
    _write_categories(category_rows(by_source[""], training_counts), per_category, plot, annotations)
    tables = [f"Source {name}\n\n" * bool(name) + format_metrics(found) for name, found in by_source.items()]
    return f"{protocol.upper()} protocol, AP and AR in percent\n\n" + "\n\n".join(tables)


def rescore_open_images(
    results: Path,
    annotations: Path,
    classes: Optional[Path],
    image_labels: Optional[Path] = None,
    hierarchy: Optional[Path] = None,
    group_by: str = "instances",
    group_of_weight: float = 1.0,
    per_category: Optional[Path] = None,
    plot: Optional[Path] = None,
    train_json: Optional[Path] = None,
) -> str:
    """Score a CSV file of Open Images' predictions by the challenge's rules, and return the table in Markdown.

    Args:
        results: CSV with ImageID, LabelName, Score, XMin, XMax, YMin, YMax.
        annotations: the CSV file of the boxes.
        classes, image_labels, hierarchy: the other files, see
            :class:`~eql_d2.data.open_images_table.OpenImagesFiles`.
        group_by: what the five groups of classes are ordered by in the training set, "instances" or "images".
        group_of_weight: what a group-of box that is found counts.
        per_category, plot: as in :func:`rescore`.
        train_json: the CSV file of the training boxes, or the ``category_frequency.json`` of a training, for groups.

    Raises:
        InputError: for files that are missing, damaged or do not fit each other.
    """
    # Not before it is needed: the other formats are scored without torch and Detectron2.
    from eql_d2.data.frequency import CategoryFrequency
    from eql_d2.data.open_images_files import open_images_table
    from eql_d2.data.open_images_table import OpenImagesFiles
    from eql_d2.evaluation import open_images_results as scoring

    _check_table_name(per_category)
    if classes is None:
        raise InputError(f"{annotations} holds boxes of Open Images; name the list of classes with --classes.")

    paths = (annotations, classes, image_labels, hierarchy)
    table, frequency = open_images_table(OpenImagesFiles(*(str(path or "") for path in paths))), None
    if train_json is not None and train_json.suffix == ".csv":
        training = OpenImagesFiles(str(train_json), str(classes))
        frequency = CategoryFrequency.of_counts(open_images_table(training).header.counts)
    elif train_json is not None:
        frequency = CategoryFrequency.from_json(train_json)
    scoring.check_training_counts(frequency, table, str(annotations))
    groups = None if frequency is None else scoring.group_of_classes(frequency, group_by)
    ap = scoring.results_ap(table, results, group_of_weight)
    _write_categories(scoring.class_rows(table, ap, frequency, groups), per_category, plot, annotations)
    metrics = scoring.format_open_images(scoring.summarize_groups(ap, groups))
    return f"Open Images challenge protocol, AP at IoU 0.5 in percent\n\n{metrics}"


def _check_table_name(per_category: Optional[Path]) -> None:
    if per_category is not None and per_category.suffix not in _WRITERS:
        raise InputError(f"--per-category {per_category} must end in .csv or .json.")


def _write_categories(
    rows: Sequence[Mapping[str, Any]], per_category: Optional[Path], plot: Optional[Path], annotations: Path
) -> None:
    """Write and draw AP of each category, as far as it is asked for."""
    if per_category is not None:
        _WRITERS[per_category.suffix](rows, per_category)
    if plot is not None:
        if all(row[count_column(rows)] is None for row in rows):
            raise InputError(
                f"--plot needs the images of each category, and {annotations} has no image_count; name the training "
                f"annotations with --train-json."
            )
        plot_categories(rows, [column for column in rows[0] if "_AP" in column], plot)


def iou_types_of(results: Path) -> Sequence[str]:
    """Return what the results can be scored by."""
    record = first_record(results)
    if record is None:
        return ("bbox",)
    types = [iou_type for iou_type, key in (("bbox", "bbox"), ("segm", "segmentation")) if record.get(key)]
    if not types:
        raise InputError(f"{results}: the detections have neither 'bbox' nor 'segmentation'; one is needed.")
    return types


def _training_set(path: Path) -> Tuple[Dict[int, str], Dict[int, Tuple[int, int]]]:
    """Return the group and the (images, instances) of each category id of a training json."""
    content = read_annotations(path)
    check_content(content, path)
    counts = content.counts()
    ids = list(content.contiguous_ids)
    return dict(zip(ids, counts.groups)), dict(zip(ids, zip(counts.image_count, counts.instance_count)))
