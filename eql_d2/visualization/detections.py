"""Detections of a results file, by image."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import msgspec
import pycocotools.mask as mask_util

from eql_d2.data.records import Record
from eql_d2.data.segmentation import RunLengthMask
from eql_d2.errors import InputError
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.objects import VisualObject, object_of_record


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: Optional[Tuple[float, float, float, float]] = None
    segmentation: Union[RunLengthMask, List[List[float]], None] = None


@dataclass(frozen=True)
class Detections:
    """What one model found in the images of one data set.

    Attributes:
        name: of the model, for titles.
        source: the results file, for messages.
        by_image: of each image id, the best score first.
    """

    name: str
    source: str
    by_image: Dict[int, List[_Detection]]

    @classmethod
    def read(cls, path: Path, name: str, dataset: AnnotatedSet) -> "Detections":
        """Read a results file in the submission format of LVIS or COCO.

        Raises:
            InputError: if it is missing or no list of detections, or names an image or category that ``dataset`` does
                not have.
        """
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=List[_Detection])
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file; it should hold the detections.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}).") from None
        except msgspec.ValidationError as error:
            raise InputError(f"{path} is no results file in LVIS or COCO format: {error}.") from None
        except msgspec.DecodeError as error:
            raise InputError(f"{path} is not valid json ({error}); is the file complete?") from None
        by_image: Dict[int, List[_Detection]] = defaultdict(list)
        for detection in found:
            if detection.category_id not in dataset.labels:
                raise InputError(
                    f"{path} has a detection with category_id {detection.category_id}, which is no category of "
                    f"{dataset.source}; do the two belong together?"
                )
            if detection.bbox is None and detection.segmentation is None:
                raise InputError(f"{path}: a detection in image {detection.image_id} has no bbox and no segmentation.")
            by_image[detection.image_id].append(detection)
        unknown = set(by_image) - image_ids(dataset)
        if unknown:
            raise InputError(
                f"{path} has detections of the image {min(unknown)}, which is not in {dataset.source}; "
                f"do the two belong together?"
            )
        for detections in by_image.values():
            detections.sort(key=lambda detection: -detection.score)
        return cls(name, str(path), dict(by_image))

    def best(
        self, record: Record, labels: Dict[int, int], count: int, threshold: Optional[float] = None
    ) -> List[VisualObject]:
        """Return an image's best detections: ``count`` of them, or all with a score of at least ``threshold``.

        Args:
            record: the dataset dict.
            labels: contiguous label of each category id.
        """
        found = self.by_image.get(record["image_id"], [])
        kept = found[:count] if threshold is None else [one for one in found if one.score >= threshold]
        return [self._object(one, record, labels) for one in kept]

    def _object(self, detection: _Detection, record: Record, labels: Dict[int, int]) -> VisualObject:
        fields: Dict[str, Any] = {"category_id": labels[detection.category_id], "score": detection.score}
        if detection.bbox is not None:
            left, top, width, height = detection.bbox
            fields["bbox"] = (left, top, left + width, top + height)
        mask = detection.segmentation
        if isinstance(mask, RunLengthMask):
            size = [record["height"], record["width"]]
            if list(mask.size) != size:
                raise InputError(
                    f"{self.source}: a mask of image {record['image_id']} has the size {list(mask.size)}, but the "
                    f"image has {size} (height, width)."
                )
            whole = {"size": size, "counts": mask.counts}
            fields["segmentation"] = whole if isinstance(mask.counts, str) else mask_util.frPyObjects(whole, *size)
        elif mask:
            fields["segmentation"] = mask
        return object_of_record(fields)


def image_ids(dataset: AnnotatedSet) -> set:
    """Return the ids of all images of a data set."""
    return {record["image_id"] for record in dataset.records}
