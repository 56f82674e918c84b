"""Results in the official submission format: checks, and the copy without boxes that mask evaluation needs."""

import contextlib
import json
import mmap
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import pycocotools.mask as mask_util

from eql_d2.data import segmentation as masks
from eql_d2.errors import InputError

Results = Union[str, os.PathLike, Sequence[Dict[str, Any]]]
_BLOCK = 1 << 24
# Of a mask that is no compressed text: polygons, or run lengths as numbers. No other value holds a quotation mark.
_UNENCODED = re.compile(rb'"(?:segmentation|counts)"\s*:\s*\[')
_BOX_THEN_COMMA = re.compile(rb'"bbox"\s*:\s*\[[^\]]*\]\s*,\s*')
_COMMA_THEN_BOX = re.compile(rb',\s*"bbox"\s*:\s*\[[^\]]*\]')


def source_name(content: Any, what: str) -> str:
    """Return the path for a message, or ``what`` if the content is in memory."""
    return str(content) if isinstance(content, (str, os.PathLike)) else what


def first_record(results: Results) -> Optional[Dict[str, Any]]:
    """Return the first detection, ``None`` if there is none, without reading the rest of a file.

    Raises:
        InputError: if the file is missing, or does not begin with a list of objects.
    """
    if not isinstance(results, (str, os.PathLike)):
        return results[0] if len(results) else None
    path = Path(results)
    try:
        with path.open() as file:
            text = file.read(1 << 16).lstrip("\ufeff \t\r\n")
            if not text.startswith("["):
                raise InputError(f"{path} does not begin with '['; a results file is a json list of detections.")
            while True:
                body = text[1:].lstrip()
                if body.startswith("]"):
                    return None
                with contextlib.suppress(ValueError):
                    record = json.JSONDecoder().raw_decode(body)[0]
                    break
                more = file.read(1 << 20)
                if not more:
                    raise InputError(f"{path} ends within its first detection; is the file complete?")
                text += more
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; it should hold the detections.") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} holds {record!r} where a detection should be; each one is a json object.")
    return record


@contextlib.contextmanager
def for_iou_type(results: Results, iou_type: str) -> Iterator[Results]:
    """Yield the results as an evaluator must see them for one IoU type.

    Where a detection has both a box and a mask, evaluators take its area, which decides small, medium or large and
    whether it counts at all, from the box. Mask evaluation means the mask's area: boxes are left out, as Detectron2
    does it. A copy of a file lies in the folder for temporary files until the context ends.
    """
    record = first_record(results)
    if iou_type != "segm" or record is None or "bbox" not in record:
        yield results
    elif isinstance(results, (str, os.PathLike)):
        with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
            path = os.path.join(folder, "masks.json")
            copy_without_boxes(results, path)
            yield path
    else:
        yield without_boxes(results)


def with_encoded_masks(results: Results, sizes: Mapping[int, Tuple[int, int]]) -> Results:
    """Return results all of whose masks are compressed run lengths, as evaluators need them.

    Polygons and run lengths as numbers are encoded, as the reference's ``ann_to_rle`` does it for annotations. A file
    without them, which is the rule, is not parsed.

    Args:
        results: a path or detections.
        sizes: height and width of each image, by its id.

    Raises:
        InputError: if a mask is neither polygons nor run lengths.
    """
    if isinstance(results, (str, os.PathLike)) and not _has_unencoded_masks(results):
        return results
    source = source_name(results, "results")
    detections = load_detections(results)
    for record in detections:
        # An image that is not known is told by the evaluators, with the other ids.
        if record.get("segmentation") is not None and record.get("image_id") in sizes:
            try:
                record["segmentation"] = encode_segmentation(record["segmentation"], *sizes[record["image_id"]])
            except InputError as error:
                raise InputError(
                    f"{source}: the segmentation of a detection of image_id {record['image_id']} {error}."
                ) from None
    return detections


def _has_unencoded_masks(path: Union[str, os.PathLike]) -> bool:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _UNENCODED.search(content) is not None


def encode_segmentation(segmentation: Any, height: int, width: int) -> Dict[str, Any]:
    """Return a mask as compressed run lengths, with ``counts`` as text.

    Args:
        segmentation: polygons, of which those of less than three points are left out as in annotations, or a dict with
            ``size`` and ``counts``: numbers, text or bytes.
        height, width: of the image, in pixels.

    Raises:
        InputError: if it is neither, or does not fit the image; the end of a sentence that begins with whose it is.
    """
    mask = masks.convert_segmentation(segmentation, height, width)
    if not isinstance(mask, dict):
        polygons = list(filter(masks.is_valid_polygon, mask or ()))
        if polygons:
            mask = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
        else:
            mask = mask_util.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def without_boxes(detections: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Return the detections without their ``bbox``; the masks are shared, not copied."""
    return [{key: value for key, value in record.items() if key != "bbox"} for record in detections]


def copy_without_boxes(source: Union[str, os.PathLike], target: Union[str, os.PathLike]) -> None:
    """Copy a results file and leave out every ``"bbox": [...]``, without parsing it.

    The run lengths of a mask hold no quotation mark, so the pattern finds keys only.
    """
    with open(source, "rb") as reader, open(target, "wb") as writer:
        rest = b""
        while True:
            block = reader.read(_BLOCK)
            text = rest + block
            # Cut behind a "}": never within a box or between a box and its comma.
            cut = text.rfind(b"}") + 1 if block else len(text)
            rest, text = text[cut:], text[:cut]
            text = _BOX_THEN_COMMA.sub(b"", text)
            if b'"bbox"' in text:
                text = _COMMA_THEN_BOX.sub(b"", text)
            writer.write(text)
            if not block:
                return


def load_detections(results: Results) -> List[Dict[str, Any]]:
    """Return all detections as dicts that may be changed: parsed from a file, or copied, masks and boxes shared.

    Raises:
        InputError: if a file is no json list of detections.
    """
    if not isinstance(results, (str, os.PathLike)):
        return [dict(record) for record in results]
    try:
        with open(results) as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{results} is not valid json ({error}); is the file complete?") from None
