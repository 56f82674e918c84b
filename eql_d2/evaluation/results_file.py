"""Results in the official submission format: checks, and the copy without boxes that mask evaluation needs."""

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

from eql_d2.errors import InputError

Results = Union[str, os.PathLike, Sequence[Dict[str, Any]]]
#: What a detection must carry to be evaluated, by IoU type: one of these.
_SHAPES = {"bbox": ("bbox", "segmentation"), "segm": ("segmentation",)}
_BLOCK = 1 << 24
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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} holds {record!r} where a detection should be; each one is a json object.")
    return record


def check_record(record: Dict[str, Any], iou_type: str, source: str) -> None:
    """Check that a detection has the fields that an evaluation needs.

    Raises:
        InputError: if one is missing.
    """
    for field in ("image_id", "category_id", "score"):
        if field not in record:
            raise InputError(f"{source}: a detection has no {field!r}; it has {', '.join(sorted(record))}.")
    if not any(field in record for field in _SHAPES[iou_type]):
        raise InputError(
            f"{source}: the detections have no {_SHAPES[iou_type][-1]!r}; evaluating {iou_type!r} needs "
            f"{' or '.join(map(repr, _SHAPES[iou_type]))} in each."
        )


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
    except ValueError as error:
        raise InputError(f"{results} is not valid json ({error}); is the file complete?") from None
