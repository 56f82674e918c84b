"""Evaluation of a merged file: what its sources verify written out for the evaluators, and each source by itself."""

import os
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import msgspec

from eql_d2.data.annotations import check_content, read_annotations, readable_json
from eql_d2.data.image_labels import ImageSource
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import Evaluations, evaluate_tasks
from eql_d2.evaluation.by_image import encode
from eql_d2.evaluation.checks import read_detections
from eql_d2.evaluation.results_file import Results, source_name
from eql_d2.evaluation.store import JSON_LIST

#: Metrics that are given of each source beside those of the whole.
OF_SOURCES = ("AP", "AP50", "AP75", "APr", "APc", "APf")


class _Sources(msgspec.Struct):
    sources: List[Any] = []


class _Parts(msgspec.Struct):
    """What is written again of a merged file; all that is not looked at is still json."""

    images: List[Dict[str, Any]]
    categories: msgspec.Raw
    annotations: Optional[List[msgspec.Raw]] = None


class _Image(NamedTuple):
    """The source of an image, its record as evaluators take it, and the json of its annotations."""

    source: str
    record: Dict[str, Any]
    annotations: List[msgspec.Raw]


class _Merged(NamedTuple):
    sources: List[ImageSource]
    images: List[_Image]
    categories: msgspec.Raw


def evaluate_sources(
    annotations: Any, results: Results, tasks: Sequence[str], **options: Any
) -> Dict[str, Evaluations]:
    """Evaluate the whole file, and of a merged one each source by itself.

    A source is evaluated on its images; in each, as in LVIS's protocol for the whole, the categories count that the
    image verifies: those it shows, those in its negative set, and those that the source annotates exhaustively. Mask AP
    is of the images of sources with masks alone.

    Args:
        annotations, results, tasks, options: as of :func:`~eql_d2.evaluation.backends.evaluate_tasks`.

    Returns:
        Evaluations by the name of the source, "" for the whole. A source whose images show no category is left out;
        one without masks has no "segm".

    Raises:
        InputError: as ``evaluate_tasks`` does.
    """
    if not _has_sources(annotations):
        return {"": evaluate_tasks(annotations, results, tasks, **options)}
    merged = _read(annotations)
    names = [""] + [source.name for source in merged.sources] * (len(merged.sources) > 1)
    found: Dict[str, Evaluations] = {}
    for name in names:
        together: Dict[Tuple[str, ...], List[str]] = defaultdict(list)
        for task in tasks:
            chosen = [one for one in merged.sources if name in ("", one.name) and (one.has_masks or task != "segm")]
            together[tuple(source.name for source in chosen)].append(task)
        for of_sources, of_tasks in together.items():
            with _part(merged, results, of_sources) as part:
                if part is not None:
                    found.setdefault(name, {}).update(evaluate_tasks(*part, of_tasks, **options))
    if "" not in found:
        raise InputError(
            f"{source_name(annotations, 'annotations')} has no image of a source with masks; evaluate bbox alone."
        )
    return found


def _has_sources(annotations: Any) -> bool:
    """Whether a file was merged. One that cannot be read is left to the evaluation, which says why."""
    if isinstance(annotations, Mapping):
        return bool(annotations.get("sources"))
    with readable_json(annotations):
        encoded = Path(annotations).read_bytes()
    try:
        return bool(msgspec.json.decode(encoded, type=_Sources).sources)
    except msgspec.DecodeError:
        return False


def _read(annotations: Any) -> _Merged:
    """Read a merged file, or its parsed content."""
    content = read_annotations(annotations)
    check_content(content, source_name(annotations, "annotations"), allow_ignore=True)
    is_parsed = isinstance(annotations, Mapping)
    encoded = msgspec.json.encode(annotations) if is_parsed else Path(annotations).read_bytes()
    parts = msgspec.json.decode(encoded, type=_Parts)
    of_image: Dict[int, List[msgspec.Raw]] = defaultdict(list)
    shown: Dict[int, Set[int]] = defaultdict(set)
    for one, still_json in zip(content.annotations or (), parts.annotations or ()):
        of_image[one.image_id].append(still_json)
        shown[one.image_id].add(one.category_id)
    sources = {source.name: source for source in content.sources}
    images = []
    for image in parts.images:
        name, id_ = image.pop("source"), image["id"]
        image["neg_category_ids"] = sources[name].absent(shown[id_], image.get("neg_category_ids") or ())
        image["not_exhaustive_category_ids"] = image.get("not_exhaustive_category_ids") or []
        images.append(_Image(name, image, of_image[id_]))
    return _Merged(content.sources, images, parts.categories)


@contextmanager
def _part(merged: _Merged, results: Results, sources: Sequence[str]) -> Iterator[Optional[Tuple[str, Results]]]:
    """Yield files of annotations and results of some sources as evaluators take them; ``None`` without annotations."""
    images = [image for image in merged.images if image.source in sources]
    annotations = [one for image in images for one in image.annotations]
    if not annotations:
        yield None
        return
    records = [image.record for image in images]
    with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
        path = os.path.join(folder, "annotations.json")
        parts = {"info": {}, "images": records, "annotations": annotations, "categories": merged.categories}
        Path(path).write_bytes(msgspec.json.encode(parts))
        if len(images) < len(merged.images):
            results = _of_images(results, {record["id"] for record in records}, os.path.join(folder, "results.json"))
        yield path, results


def _of_images(results: Results, ids: Set[int], path: str) -> Results:
    """Return the detections in some images: a list if they are one, else the path of a new file."""
    if not isinstance(results, (str, os.PathLike)):
        return [record for record in results if record.get("image_id") in ids]
    blocks = ([one for one in block if one.image_id in ids] for block in read_detections(results))
    with open(path, "wb") as file:
        JSON_LIST.write(file, (encode(block)[1:-1] for block in blocks))
    return path
