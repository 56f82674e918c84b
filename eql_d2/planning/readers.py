"""Annotations as people have them: a json in COCO or LVIS format, YOLO's label files, Pascal VOC's XML files.

The latter two are read by globox and become a json in COCO format, with the polygons of YOLO, which globox leaves out.
"""

import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import msgspec
import yaml

from eql_d2.data.annotations import PathLike, read_annotations, readable_json
from eql_d2.data.image_files import read_upright_size
from eql_d2.errors import InputError

#: Image files that lie in a folder of YOLO.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_YOLO_LIST = "a data.yaml of YOLO with 'train' (and 'val', 'names'), as ultralytics writes it"

#: Of each image by its name, a polygon in pixels for each object, or ``None``.
Polygons = Dict[str, List[Optional[List[float]]]]


class Split(NamedTuple):
    """Annotated images: the parsed json in COCO or LVIS format, and the folder that its file names start at."""

    content: Dict[str, Any]
    images: Path


def read_split(source: PathLike, images: Optional[PathLike] = None) -> Tuple[Split, Optional[Split]]:
    """Read a data set.

    Args:
        source: a json in COCO or LVIS format; YOLO's ``data.yaml``; or a folder with ``data.yaml``, or of Pascal VOC
            (``Annotations/*.xml`` and ``JPEGImages``, or XML files beside the images).
        images: the image folder; for a json by default ``images`` beside it, else its own folder.

    Returns:
        The images to train on, and those to validate on where the data set says which (YOLO's ``val``).

    Raises:
        InputError: if it is nothing of this, or a file of it cannot be used.
    """
    path = Path(source)
    if path.is_dir():
        lists = [path / name for name in ("data.yaml", "dataset.yaml") if (path / name).is_file()]
        return _read_yolo(lists[0]) if lists else (_read_voc(path, images), None)
    if path.suffix in (".yaml", ".yml"):
        return _read_yolo(path)
    read_annotations(path)  # names what is wrong with it
    with readable_json(path):
        content = msgspec.json.decode(path.read_bytes())
    folders = [Path(images)] if images else [path.parent / "images", path.parent]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"--images {images}: there is no such folder; it should hold the images of {path}.")
    return Split(content, folder), None


def _read_yolo(path: Path) -> Tuple[Split, Optional[Split]]:
    """Read the image folders that a ``data.yaml`` lists, each with a folder ``labels`` in the place of ``images``."""
    try:
        listed = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read ({' '.join(str(error).split())}); it should be {_YOLO_LIST}."
        ) from None
    if not isinstance(listed, dict) or not listed.get("train") or not isinstance(listed.get("names"), (list, dict)):
        raise InputError(f"{path} is no list of a data set: it should be {_YOLO_LIST}.")
    names = listed["names"]
    names = {int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    root = path.parent / str(listed.get("path") or "")
    root = root if root.is_dir() else path.parent  # a path of the machine that wrote it
    splits = {}
    for key in ("train", "val"):
        entries = listed.get(key) or []
        folders = [
            _yolo_folder(root, str(entry), path) for entry in ([entries] if isinstance(entries, str) else entries)
        ]
        if folders:
            # As it is, unless "..", an absolute path or a link leads out of it: file names start at one folder.
            resolved = root.resolve()
            images = root if all(resolved in (one, *one.parents) for one in folders) else _common(resolved, folders)
            annotations, polygons = _yolo_images(images, folders, names)
            splits[key] = Split(_coco(annotations, [names[label] for label in sorted(names)], polygons), images)
    return splits["train"], splits.get("val")


def _yolo_folder(root: Path, entry: str, listed_in: Path) -> Path:
    # Roboflow writes "../train/images" for a folder beside data.yaml.
    for folder in (root / entry, root / entry.replace("../", "")):
        if folder.is_dir():
            return folder.resolve()
    raise InputError(f"{listed_in} lists the image folder {entry}, which is not below {root}; it should be.")


def _yolo_images(root: Path, folders: Iterable[Path], names: Dict[int, str]) -> Tuple[List[Any], Polygons]:
    globox = _import_globox()
    annotations, polygons = [], {}
    for folder in folders:
        parts = list(folder.parts)
        if "images" not in parts:
            raise InputError(f"{folder}: the labels of YOLO lie in a folder 'labels' in the place of 'images'.")
        place = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:place], "labels", *parts[place + 1 :])
        for image in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES):
            name, size = image.relative_to(root.resolve()).as_posix(), _image_size(image)
            file = labels / image.relative_to(folder).with_suffix(".txt")
            if not file.is_file():  # an image without an object has no file, or an empty one
                annotations.append(globox.Annotation(name, size, []))
                continue
            try:
                lines = [line for line in file.read_text().splitlines() if line.strip()]
                one = globox.Annotation(name, size, [_yolo_box(line, size) for line in lines])
                polygons[name] = [_yolo_polygon(line, size) for line in lines]
                one.map_labels({str(label): class_name for label, class_name in names.items()})
                unknown = {box.label for box in one.boxes} - set(names.values())
            except (globox.errors.ParsingError, ValueError, AssertionError) as error:  # globox asserts what it reads
                raise InputError(
                    f"{file} cannot be read ({' '.join(str(error).split())}); a line holds a label and the box as x, "
                    f"y, width, height, or a polygon as x, y, x, y, ... of three points or more, shares of the image."
                ) from None
            if unknown:
                raise InputError(f"{file} has the label {sorted(unknown)[0]}, which is not among the names.")
            annotations.append(one)
    if not annotations:
        raise InputError(f"{', '.join(map(str, folders))}: there is no image.")
    return annotations, polygons


def _is_polygon(line: str) -> bool:
    """A line of a box has a label, four numbers, and perhaps a score."""
    return len(line.split()) > 6


def _yolo_box(line: str, size: Tuple[int, int]) -> Any:
    of_line = _import_globox().BoundingBox
    return (of_line.from_yolo_seg if _is_polygon(line) else of_line.from_yolo_v5)(line, image_size=size)


def _yolo_polygon(line: str, size: Tuple[int, int]) -> Optional[List[float]]:
    """Return x, y, x, y, ... in pixels, within the image of (width, height), or ``None`` for a box."""
    if not _is_polygon(line):
        return None
    return [min(max(float(share), 0.0), 1.0) * size[i % 2] for i, share in enumerate(line.split()[1:])]


def _read_voc(folder: Path, images: Optional[PathLike]) -> Split:
    globox = _import_globox()
    xml = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = sorted(xml.glob("*.xml"))
    if not files:
        raise InputError(
            f"{folder} holds neither data.yaml (YOLO) nor Annotations/*.xml (Pascal VOC); name one of them, or a json."
        )
    annotations = []
    for file in files:
        try:
            annotations.append(globox.Annotation.from_pascal_voc(file))
        except (globox.errors.ParsingError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({error}); it should be Pascal VOC's XML.") from None
    names = sorted({box.label for one in annotations for box in one.boxes})
    places = [Path(images)] if images else [folder / "JPEGImages", folder / "images", xml]
    root = next((place for place in places if (place / annotations[0].image_id).is_file()), None)
    if root is None:
        raise InputError(f"{annotations[0].image_id} is in none of {', '.join(map(str, places))}; name it by --images.")
    return Split(_coco(annotations, names), root)


def _coco(annotations: Sequence[Any], names: Sequence[str], polygons: Optional[Polygons] = None) -> Dict[str, Any]:
    """Return globox's annotations as the content of a json in COCO format, with category ids from 1."""
    ids = {name: label + 1 for label, name in enumerate(names)}
    images, objects = [], []
    for image_id, one in enumerate(sorted(annotations, key=lambda one: one.image_id), 1):
        width, height = one.image_size
        images.append({"id": image_id, "file_name": one.image_id, "width": width, "height": height})
        of_image = (polygons or {}).get(one.image_id) or [None] * len(one.boxes)
        for box, polygon in zip(one.boxes, of_image):
            # What labels rounded over the border is cut off, as everything that reads them does.
            left, top = max(box.xmin, 0.0), max(box.ymin, 0.0)
            x, y, w, h = left, top, min(box.xmax, width) - left, min(box.ymax, height) - top
            entry = {"id": len(objects) + 1, "image_id": image_id, "category_id": ids[box.label], "iscrowd": 0}
            mask = {} if polygon is None else {"segmentation": [polygon]}
            objects.append({**entry, "bbox": [x, y, w, h], "area": w * h, **mask})
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": category_id, "name": name} for name, category_id in ids.items()],
    }


def _common(root: Path, folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([root, *folders]))


def _image_size(path: Path) -> Tuple[int, int]:
    try:
        return read_upright_size(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}).") from None


def _import_globox():
    try:
        import globox
        import globox.errors
    except ImportError:
        raise InputError('Reading YOLO and Pascal VOC needs globox: pip install "eql_d2[plan]".') from None
    return globox
