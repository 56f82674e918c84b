"""What results and ground truth must be before a metric is computed of them.

The evaluators themselves take a score that is null or missing for 0, and an infinite box for one that never matches.
"""

import io
import logging
import os
import re
from collections import deque
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any, BinaryIO, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import msgspec

from eql_d2.data import segmentation
from eql_d2.data.annotations import MAX_ID, AnnotationFile, Coordinate, decode_segmentation, describe_ids
from eql_d2.data.ground_truth import doubled_annotations, ids_without_area
from eql_d2.data.segmentation import RunLengthMask
from eql_d2.errors import InputError
from eql_d2.evaluation.results_file import Results, source_name

logger = logging.getLogger("detectron2.eql_d2.evaluation")

#: What a detection must carry to be evaluated, by IoU type: one of these.
_SHAPES = {"bbox": ("bbox", "segmentation"), "segm": ("segmentation",)}
_NO_SEGMENTATION, _NULL = msgspec.Raw(), msgspec.Raw(b"null")
# Some programs write ids as 3.0.
_Id = Union[Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)], float]
_BLOCK = 1 << 20
_BETWEEN_OBJECTS = re.compile(rb"\}\s*,\s*(?=\{)")
# Where msgspec says that an error is: an item of the list, a byte.
_NUMBER, _BYTE = re.compile(r"\$\[(\d+)\]"), re.compile(r"\(byte (\d+)\)")

_UNKNOWN = "a category_id that is not in the annotations; they count towards the cap and match nothing"
_NO_PROBABILITY = "a score outside [0, 1], which is no probability; scores only rank detections here"
_NEGATIVE = "a box of negative width or height; boxes are [x, y, width, height]"


class Detection(msgspec.Struct, gc=False):
    """An entry of a results file. ``bbox`` is x, y, width, height in pixels. ``segmentation`` is still json."""

    image_id: _Id
    category_id: _Id
    score: float
    bbox: Optional[Tuple[Coordinate, Coordinate, Coordinate, Coordinate]] = None
    segmentation: msgspec.Raw = _NO_SEGMENTATION

    def has(self, field: str) -> bool:
        """Whether it has a value for "bbox" or "segmentation"."""
        if field == "bbox":
            return self.bbox is not None
        return self.segmentation is not _NO_SEGMENTATION and self.segmentation != _NULL


_DECODER = msgspec.json.Decoder(List[Detection])
# NumPy's numbers and arrays, which detections in memory may hold. NaN and infinity become null.
_ENCODER = msgspec.json.Encoder(enc_hook=lambda value: value.tolist())


def read_detections(results: Results) -> Iterator[List[Detection]]:
    """Yield the detections of a results file, or of a list in memory, some thousand at a time.

    Types and ranges of all fields but the masks are checked.

    Raises:
        InputError: if the file is missing or damaged; naming the first detection that lacks a field or whose score or
            box is no finite number.
    """
    source = source_name(results, "results")
    try:
        if isinstance(results, (str, os.PathLike)):
            with open(results, "rb") as file:
                yield from _decode(file, source)
        else:
            yield from _decode(io.BytesIO(_encode(results)), source, " (NaN and infinity count as `null`)")
    except FileNotFoundError:
        raise InputError(f"{source}: there is no such file; it should hold the detections.") from None
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}).") from None


def _encode(results: Sequence[Dict[str, Any]]) -> bytes:
    try:
        return _ENCODER.encode(results)
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"results hold what json cannot ({error}); each detection is a dict of plain values."
        ) from None


def _decode(file: BinaryIO, source: str, hint: str = "") -> Iterator[List[Detection]]:
    """Yield the detections of a json list, a block of the file in memory at a time."""
    done, text = 0, b""
    while True:
        block = file.read(_BLOCK)
        text += block
        gap = _last_gap(text) if block else None
        if block and gap is None:  # one record is larger than a block
            text, block = text + file.read(), b""
        whole, text = (text[: gap.start() + 1] + b"]", b"[" + text[gap.end() :]) if gap else (text, b"")
        try:
            detections = _decode_list(whole, done, source, hint)
        except InputError:
            if not block:
                raise
            # Perhaps the gap is one within a text, or in a list of some other field: then all is read at once.
            detections = _decode_list(whole[:-1] + b"," + text[1:] + file.read(), done, source, hint)
            block = b""
        yield detections
        if not block:
            return
        done += len(detections)


def _last_gap(text: bytes) -> Optional["re.Match[bytes]"]:
    """Return the last place between two json objects, ``None`` if there is none."""
    for start in (max(0, len(text) - _BLOCK // 16), 0):
        gaps = deque(_BETWEEN_OBJECTS.finditer(text, start), maxlen=1)
        if gaps:
            return gaps[0]
    return None


def _decode_list(text: bytes, done: int, source: str, hint: str) -> List[Detection]:
    """Decode a json list, whose first detection is number ``done`` of the file."""
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError as error:
        words = _NUMBER.sub(lambda found: f"$[{int(found[1]) + done}]", str(error))
        raise InputError(f"{source} is no json list of detections in the submission format: {words}{hint}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        place = _BYTE.search(str(error))
        # Python's json module writes them.
        is_at_nan = place is not None and text[int(place[1]) :].startswith((b"NaN", b"Infinity"))
        advice = "json has no NaN and no infinity." if is_at_nan else "is the file complete?"
        raise InputError(f"{source} is not valid json ({error}); {advice}") from None


class _Oddities:
    """Detections that are counted and named, since the official programs accept them."""

    def __init__(self, source: str):
        self._source = source
        self._found: Dict[str, Tuple[int, str]] = {}

    def add(self, what: str, value: Any, image_id: _Id) -> None:
        count, first = self._found.get(what, (0, f"{value} in image {image_id}"))
        self._found[what] = count + 1, first

    def warn(self) -> None:
        for what, (count, first) in self._found.items():
            logger.warning("%s: %d detections have %s. The first: %s.", self._source, count, what, first)


def check_results(results: Results, content: AnnotationFile, tasks: Sequence[str], each_mask: bool = True) -> None:
    """Check detections against the annotations that they are to be evaluated on.

    What the official programs accept is counted and named in a warning: detections of categories that the annotations
    do not list, scores outside [0, 1], and boxes of negative width or height.

    Args:
        results: a path or detections.
        content: of the annotation file, its ids checked.
        tasks: "bbox" and/or "segm".
        each_mask: whether every mask is looked at, without which pycocotools does not return, or the first one of each
            image, which tells masks of another data set or another size.

    Raises:
        InputError: naming the first detection that cannot be evaluated; or if no category is known.
    """
    source = source_name(results, "results")
    is_file = isinstance(results, (str, os.PathLike))
    mask_checker = _MaskChecker(source, content, each_mask)
    oddities = _Oddities(source)
    category_ids = {category.id for category in content.categories}
    first: Optional[Detection] = None
    needs_box = needs_mask = False
    number = num_strangers = 0
    for number, detection in enumerate(chain.from_iterable(read_detections(results)), 1):
        if first is None:
            first, fields = detection, {_shape_of(detection, task, source) for task in tasks}
            needs_box, needs_mask = "bbox" in fields, "segmentation" in fields
        box = detection.bbox
        if detection.image_id not in mask_checker.sizes:
            raise InputError(
                f"{source}: image_id {detection.image_id} of a detection is not in the annotations; do the results "
                f"belong to this data set?"
            )
        if (needs_box and box is None) or (needs_mask and not detection.has("segmentation")):
            lacking = "bbox" if needs_box and box is None else "segmentation"
            raise InputError(f"{source}: detection {number - 1} lacks the {lacking!r} that the first one has.")
        if detection.category_id not in category_ids:
            num_strangers += 1
            if detection.category_id != int(detection.category_id):
                raise InputError(
                    f"{source}: category_id {detection.category_id} of detection {number - 1} is no whole number."
                )
            oddities.add(_UNKNOWN, detection.category_id, detection.image_id)
        if not 0 <= detection.score <= 1:
            oddities.add(_NO_PROBABILITY, detection.score, detection.image_id)
        if box is not None and (box[2] < 0 or box[3] < 0):
            oddities.add(_NEGATIVE, list(box), detection.image_id)
        if needs_mask and is_file:
            mask_checker.add(detection, number - 1)
    mask_checker.finish()
    if first is not None and num_strangers == number:
        raise InputError(
            f"{source}: no category_id of the detections is in the annotations (the first is {first.category_id}); the "
            f"ids must be those of the annotation file, {describe_ids(category_ids)}."
        )
    oddities.warn()


class _MaskChecker:
    """Checks masks against the sizes of their images, compressed ones a thousand at a time.

    Polygons, run lengths as numbers and detections in memory are left to
    :func:`~eql_d2.evaluation.results_file.with_encoded_masks`.
    """

    def __init__(self, source: str, content: AnnotationFile, each: bool):
        self.sizes: Dict[float, Tuple[int, int]] = {i.id: (i.height, i.width) for i in content.images}
        self._source, self._each = source, each
        self._seen: Set[_Id] = set()
        self._waiting: List[Tuple[int, _Id, RunLengthMask]] = []

    def add(self, detection: Detection, number: int) -> None:
        """Check the mask of a detection of a known image, perhaps later."""
        if not self._each:
            if detection.image_id in self._seen:
                return
            self._seen.add(detection.image_id)
        with self._named(number):
            mask = segmentation.parse(detection.segmentation)
        if isinstance(mask, RunLengthMask) and isinstance(mask.counts, str):
            self._waiting.append((number, detection.image_id, mask))
            if len(self._waiting) >= 1000:
                self.finish()

    def finish(self) -> None:
        """Check what waits.

        Raises:
            InputError: naming the first mask that does not fit its image.
        """
        sizes = [self.sizes[image_id] for _, image_id, _ in self._waiting]
        right_size = all(mask.size == size for (_, _, mask), size in zip(self._waiting, sizes))
        texts = [str(mask.counts).encode() for _, _, mask in self._waiting]
        if not (right_size and segmentation.all_fill(texts, [height * width for height, width in sizes])):
            for number, image_id, mask in self._waiting:
                with self._named(number):
                    segmentation.check_run_lengths(mask.size, mask.counts, *self.sizes[image_id])
        self._waiting.clear()

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self._source}: the segmentation of detection {number} {error}.") from None


def _shape_of(detection: Detection, task: str, source: str) -> str:
    """Return the field that a task evaluates all detections by: what the first one has."""
    for field in _SHAPES[task]:
        if detection.has(field):
            return field
    raise InputError(
        f"{source}: the detections have no {_SHAPES[task][-1]!r}; evaluating {task!r} needs "
        f"{' or '.join(map(repr, _SHAPES[task]))} in each."
    )


def check_ground_truth(annotations: Any, content: AnnotationFile, with_masks: bool = False) -> None:
    """Check what evaluation alone needs of annotations: the area of each object; warn of objects that are there twice.

    Args:
        annotations: a path or parsed content.
        content: the same, read and with its ids checked.
        with_masks: whether masks are evaluated: every object of a listed image must have one then.

    Raises:
        InputError: if an annotation has no finite area, or no mask that fits its image.
    """
    source = source_name(annotations, "annotations")
    lacking = ids_without_area(annotations)
    if lacking:
        raise InputError(
            f"{source}: {len(lacking)} annotations have no 'area' (the first: annotation {lacking[0]}), by which "
            f"evaluation tells small, medium and large objects; give each its area in pixels."
        )
    images = {image.id: image for image in content.images}
    for annotation in content.annotations or () if with_masks else ():
        image = images.get(annotation.image_id)
        if image is not None and decode_segmentation(annotation, image, source) is None:
            raise InputError(
                f"{source}: annotation {annotation.id} has no segmentation, which evaluating 'segm' needs; evaluate "
                f"'bbox' alone."
            )
    doubled = doubled_annotations(content)
    if doubled:
        logger.warning(
            "%s: %d annotations are there twice, with the same image, category, box and mask (the first: annotation "
            "%d); each copy counts as an object that can be missed.",
            source,
            len(doubled),
            doubled[0],
        )
