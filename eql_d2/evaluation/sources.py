"""Evaluation of a merged file: what its sources verify written out for the evaluators, and each source by itself."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import msgspec

from eql_d2.data.annotations import check_content, read_annotations, readable_json
from eql_d2.data.image_labels import ImageSource
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import Evaluations, evaluate_tasks
from eql_d2.evaluation.results_file import Results, source_name

#: Metrics that are given of each source beside those of the whole.
OF_SOURCES = ("AP", "AP50", "AP75", "APr", "APc", "APf")


class _Entry(msgspec.Struct, gc=False):
    image_id: float  # some programs write ids as 3.0
    category_id: int = 0


class _Merged(msgspec.Struct):
    images: List[Dict[str, Any]]
    categories: msgspec.Raw
    annotations: List[msgspec.Raw] = []
    sources: List[ImageSource] = []


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
    content = _read(annotations)
    check_content(read_annotations(annotations), source_name(annotations, "annotations"), allow_ignore=True)
    names = [""] + [source.name for source in content.sources] * (len(content.sources) > 1)
    found: Dict[str, Evaluations] = {}
    for name in names:
        for task in tasks:
            with _part(content, results, name, task) as part:
                if part is not None:
                    found.setdefault(name, {}).update(evaluate_tasks(*part, (task,), **options))
    if "" not in found:
        raise InputError(
            f"{source_name(annotations, 'annotations')} has no image of a source with masks; evaluate bbox alone."
        )
    return found


class _Sources(msgspec.Struct):
    sources: List[Any] = []


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
    """Return a file, or its parsed content, with all that is not looked at still json."""
    name = source_name(annotations, "annotations")
    try:
        if isinstance(annotations, (str, os.PathLike)):
            with readable_json(annotations):
                encoded = Path(annotations).read_bytes()
        else:
            encoded = msgspec.json.encode(annotations)
        return msgspec.json.decode(encoded, type=_Merged)
    except msgspec.DecodeError as error:
        raise InputError(f"{name} is not in LVIS or COCO format: {error}.") from None


@contextmanager
def _part(content: _Merged, results: Results, name: str, task: str) -> Iterator[Optional[Tuple[str, Results]]]:
    """Yield files of annotations and results of one source ("" for all) as evaluators take them; ``None`` if empty."""
    chosen = {
        source.name: source
        for source in content.sources
        if name in ("", source.name) and (source.has_masks or task != "segm")
    }
    images = [image for image in content.images if image.get("source") in chosen]
    ids = {image["id"] for image in images}
    kept, shown = [], {id_: set() for id_ in ids}  # type: ignore[var-annotated]
    for annotation in content.annotations:
        entry = msgspec.json.decode(annotation, type=_Entry)
        if entry.image_id in ids:
            kept.append(annotation)
            shown[entry.image_id].add(entry.category_id)
    if not kept:
        yield None
        return
    written = [_written_out(image, chosen[image["source"]], shown[image["id"]]) for image in images]
    with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
        path = os.path.join(folder, "annotations.json")
        parts = {"info": {}, "images": written, "annotations": kept, "categories": content.categories}
        Path(path).write_bytes(msgspec.json.encode(parts))
        if len(images) < len(content.images):
            results = _of_images(results, ids, os.path.join(folder, "results.json"))
        yield path, results


def _written_out(image: Dict[str, Any], source: ImageSource, shown: Set[int]) -> Dict[str, Any]:
    """Return an image's record with the categories in its negative set that its source verified to be absent."""
    absent = set(source.exhaustive_category_ids).union(image.get("neg_category_ids") or ()) - shown
    sets = {"neg_category_ids": sorted(absent)}
    sets["not_exhaustive_category_ids"] = image.get("not_exhaustive_category_ids") or []
    return {**{key: value for key, value in image.items() if key != "source"}, **sets}


def _of_images(results: Results, ids: Set[int], path: str) -> Results:
    """Return the detections in some images: a list if they are one, else the path of a new file."""
    if not isinstance(results, (str, os.PathLike)):
        return [record for record in results if record.get("image_id") in ids]
    try:
        records = msgspec.json.decode(Path(results).read_bytes(), type=List[msgspec.Raw])
        kept = [record for record in records if msgspec.json.decode(record, type=_Entry).image_id in ids]
    except OSError as error:
        raise InputError(f"{results} cannot be read ({error}).") from None
    except msgspec.DecodeError as error:
        raise InputError(f"{results} is no results file ({error}); is it complete?") from None
    Path(path).write_bytes(msgspec.json.encode(kept))
    return path
