"""What evaluation needs of annotations beyond what training does: areas, and each object once."""

import os
from pathlib import Path
from typing import Annotated, Any, Dict, Hashable, List, Mapping, Optional, Set, Type, TypeVar, Union

import msgspec

from eql_d2.data.annotations import AnnotationFile, PathLike, readable_json
from eql_d2.errors import InputError

_Content = TypeVar("_Content")


class _Object(msgspec.Struct, gc=False):
    id: int
    area: Optional[Annotated[float, msgspec.Meta(ge=0, le=1e18)]] = None


class _Objects(msgspec.Struct):
    annotations: Optional[List[_Object]] = None


class _Image(msgspec.Struct, gc=False):
    id: int


class _Images(msgspec.Struct):
    images: List[_Image]


def ids_without_area(source: Union[PathLike, Mapping[str, Any]], name: str = "annotations") -> List[int]:
    """Return the ids of the annotations that have no ``area``, by which evaluation tells small from large objects.

    The reader keeps no areas: training has no use for them.

    Args:
        source: a path, or what ``json.load`` returns for it.
        name: stands for parsed content in messages.

    Raises:
        InputError: if the file cannot be read, or an area is negative, infinite or no number.
    """
    return [one.id for one in _decode(source, name, _Objects).annotations or () if one.area is None]


def listed_images(source: Union[PathLike, Mapping[str, Any]], name: str = "annotations") -> Set[int]:
    """Return the ids of all images, without reading anything else; arguments and errors as above."""
    return {image.id for image in _decode(source, name, _Images).images}


def _decode(source: Union[PathLike, Mapping[str, Any]], name: str, as_type: Type[_Content]) -> _Content:
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with readable_json(source):
            content = Path(source).read_bytes()
    else:
        content = msgspec.json.encode(source)
    try:
        return msgspec.json.decode(content, type=as_type)
    except msgspec.DecodeError as error:
        raise InputError(f"{name} is not in LVIS or COCO format: {error}.") from None


def doubled_annotations(content: AnnotationFile) -> List[int]:
    """Return the ids of annotations that repeat another one: the same image, category, box and segmentation."""
    first: Dict[Hashable, int] = {}
    return [
        one.id
        for one in content.annotations or ()
        if first.setdefault((one.image_id, one.category_id, one.bbox, bytes(one.segmentation)), one.id) != one.id
    ]
