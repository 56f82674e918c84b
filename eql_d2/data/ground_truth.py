"""What evaluation needs of annotations beyond what training does: areas, and each object once."""

import os
from pathlib import Path
from typing import Annotated, Any, Dict, Hashable, List, Mapping, Optional, Union

import msgspec

from eql_d2.data.annotations import AnnotationFile, PathLike, readable_json
from eql_d2.errors import InputError


class _Object(msgspec.Struct, gc=False):
    id: int
    area: Optional[Annotated[float, msgspec.Meta(ge=0, le=1e18)]] = None


class _Objects(msgspec.Struct):
    annotations: Optional[List[_Object]] = None


_DECODER = msgspec.json.Decoder(_Objects)


def ids_without_area(source: Union[PathLike, Mapping[str, Any]], name: str = "annotations") -> List[int]:
    """Return the ids of the annotations that have no ``area``, by which evaluation tells small from large objects.

    The reader keeps no areas: training has no use for them.

    Args:
        source: a path, or what ``json.load`` returns for it; read before by :mod:`eql_d2.data.annotations`.
        name: stands for parsed content in messages.

    Raises:
        InputError: if an area is negative, infinite or no number.
    """
    is_file = isinstance(source, (str, os.PathLike))
    if is_file:
        with readable_json(source):
            content = Path(source).read_bytes()
    else:
        content = msgspec.json.encode(source)
    try:
        objects = _DECODER.decode(content).annotations or ()
    except msgspec.ValidationError as error:
        raise InputError(f"{source if is_file else name} is not in LVIS or COCO format: {error}.") from None
    return [one.id for one in objects if one.area is None]


def doubled_annotations(content: AnnotationFile) -> List[int]:
    """Return the ids of annotations that repeat another one: the same image, category, box and segmentation."""
    first: Dict[Hashable, int] = {}
    return [
        one.id
        for one in content.annotations or ()
        if first.setdefault((one.image_id, one.category_id, one.bbox, bytes(one.segmentation)), one.id) != one.id
    ]
