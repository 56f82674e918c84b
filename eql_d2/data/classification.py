"""Image classification sets as dataset dicts: CIFAR with any long tail, image lists, iNaturalist jsons, image folders.

A record has ``image_id``, ``annotations`` with the one label (``[{"category_id": label}]``, so that samplers and counts
work as for detection), and either ``file_name`` or ``image``, uint8 ``[H, W, 3]`` in the order RGB.
"""

import inspect
import json
import pickle
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.annotations import PathLike
from eql_d2.data.image_files import path_below
from eql_d2.data.records import Record
from eql_d2.data.registration import set_metadata
from eql_d2.errors import InputError
from eql_d2.weights import unpickle

#: Images that a folder may hold, by the end of their names.
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".JPEG", ".JPG", ".PNG")
_SPLITS = ("train", "test")
#: What ``evaluator_type`` says of these sets.
EVALUATOR_TYPE = "classification"


class ImageSet(NamedTuple):
    """A classification set.

    Attributes:
        records: dataset dicts, see the module's docstring.
        class_names: by label.
    """

    records: List[Record]
    class_names: List[str]


def long_tail_counts(largest: int, num_classes: int, imbalance: float) -> List[int]:
    """Return the images of each class, ``int(largest (1 / imbalance)^(k / (K - 1)))`` for class k.

    The rule of the class-balanced-loss repository (Cui et al., arXiv 1901.05555), in the order of the labels: CIFAR-100
    (500 images a class) has 9,502 images at imbalance 200, 10,847 at 100 and 12,608 at 50.

    Raises:
        InputError: if the imbalance is below 1.
    """
    if not imbalance >= 1:
        raise InputError(f"imbalance is {imbalance}; it is the largest class's images by the smallest's, at least 1.")
    last = max(num_classes - 1, 1)
    return [int(largest * (1 / imbalance) ** (label / last)) for label in range(num_classes)]


def long_tail_subset(labels: np.ndarray, num_classes: int, imbalance: float, seed: int, source: str) -> np.ndarray:
    """Return which images a long-tailed subset keeps: ascending indices, int ``[M]``.

    As many of each class as :func:`long_tail_counts` says, the first of a shuffle by numpy's legacy generator with
    ``seed``, class after class: the choice of the LDAM-DRW repository for seed 0.

    Args:
        labels: int ``[N]``.
        num_classes: K.
        imbalance: images of the largest class by those of the smallest.
        seed: of the shuffles.
        source: names the data set, for messages.

    Raises:
        InputError: if a class has fewer images than it should keep.
    """
    present = np.bincount(labels, minlength=num_classes)
    random = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(long_tail_counts(int(present.max()), num_classes, imbalance)):
        if present[label] < count:
            raise InputError(
                f"{source}: class {label} has {present[label]} images, and at imbalance {imbalance:g} it should keep "
                f"{count}; start from the whole data set, or one that was cut with at most this imbalance."
            )
        indices = np.flatnonzero(labels == label)
        random.shuffle(indices)
        kept.append(indices[:count])
    return np.sort(np.concatenate(kept))


def load_cifar(path: PathLike, split: str = "train", imbalance: Optional[float] = None, seed: int = 0) -> ImageSet:
    """Load CIFAR-10 or CIFAR-100, the latter with its 100 fine labels.

    Args:
        path: the folder of the original archive for Python (``cifar-100-python``), the archive itself (``.tar.gz``), or
            an ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test`` and, if it likes, ``classes``.
        split: "train" or "test".
        imbalance: cut the images down to this long tail, see :func:`long_tail_subset`; ``None`` keeps all.
        seed: of the choice of images.

    Raises:
        InputError: if the file is missing or of another kind, or an argument is of no use.
    """
    if split not in _SPLITS:
        raise InputError(f"{path}: split is {split!r}; there are train and test.")
    images, labels, names = (_read_npz if str(path).endswith(".npz") else _read_cifar_archive)(str(path), split)
    indices = np.arange(len(labels))
    if imbalance is not None:
        indices = long_tail_subset(labels, len(names), float(imbalance), int(seed), str(path))
    return ImageSet([_record(int(i), int(labels[i]), image=images[i]) for i in indices], names)


def load_image_list(
    path: PathLike, images: PathLike, classes: Optional[PathLike] = None, images_anywhere: bool = False
) -> ImageSet:
    """Load a list of ``path label`` lines, as ImageNet-LT and Places-LT are given.

    Args:
        path: of the list; blank lines are skipped.
        images: the folder that the paths start at.
        classes: a file with one class name per line; without it the labels are numbers, as many as the list's largest.
        images_anywhere: whether a path may lead out of that folder, as ``/data/a.jpg`` and ``../a.jpg`` do.

    Raises:
        InputError: naming the first line that is not of this form.
    """
    records: List[Record] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit():
            raise InputError(f"{path}, line {number}: {line!r} is not 'path label' with a label from 0 on.")
        file_name = _image_path(images, name.strip(), images_anywhere, f"{path}, line {number}")
        records.append(_record(len(records), int(label), file_name=file_name))
    return _checked(records, _text(classes).splitlines() if classes else None, str(path))


def load_inaturalist(path: PathLike, images: PathLike, images_anywhere: bool = False) -> ImageSet:
    """Load an iNaturalist json: ``images``, ``annotations`` with one ``category_id`` each, and maybe ``categories``.

    The label is the place of the category id among those of ``categories``, or the id itself without them.

    Args:
        path: of the json.
        images: the folder that ``file_name`` starts at.
        images_anywhere: as for :func:`load_image_list`.

    Raises:
        InputError: if the file is no such json.
    """
    try:
        content = json.loads(_text(path))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        categories = sorted(content.get("categories", ()), key=lambda category: category["id"])
        labels = {category["id"]: label for label, category in enumerate(categories)}
        records = [
            _record(
                int(entry["image_id"]),
                labels[entry["category_id"]] if categories else int(entry["category_id"]),
                file_name=_image_path(images, files[entry["image_id"]], images_anywhere, str(path)),
            )
            for entry in content["annotations"]
        ]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no iNaturalist json ({error!r}).") from None
    names = [str(category.get("name", category["id"])) for category in categories]
    return _checked(records, names or None, str(path))


def _image_path(images: PathLike, name: str, anywhere: bool, where: str) -> str:
    path = str(Path(images, name)) if anywhere else path_below(str(Path(images)), name)
    if path is None:
        raise InputError(
            f"{where}: {name!r} leads out of the image folder {images}. Name a folder that holds all images or, if you "
            f"trust the list with any path of this machine, set images_anywhere True for the data set."
        )
    return path


def load_image_folder(path: PathLike) -> ImageSet:
    """Load a folder with a folder for each class, labels in the order of their names.

    Raises:
        InputError: if there is no such folder, or none with an image in it.
    """
    root = Path(path)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    if not names:
        raise InputError(f"{path}: there is no such folder, or no folder in it; each class has one.")
    files = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((root / name).rglob("*"))
        if file.suffix in _IMAGE_SUFFIXES
    ]
    return _checked([_record(i, label, file_name=str(f)) for i, (f, label) in enumerate(files)], names, str(path))


class Kind(NamedTuple):
    """A kind of classification set.

    Attributes:
        load: called with the path and the options.
        path_options: the options that are paths themselves.
    """

    load: Callable[..., ImageSet]
    path_options: Sequence[str] = ()

    @property
    def options(self) -> List[str]:
        """Names of what the loader takes besides the path."""
        return list(inspect.signature(self.load).parameters)[1:]


DATASET_KINDS: Dict[str, Kind] = {
    "cifar": Kind(load_cifar),
    "list": Kind(load_image_list, ("images", "classes")),
    "inaturalist": Kind(load_inaturalist, ("images",)),
    "folder": Kind(load_image_folder),
}


def register_image_set(name: str, kind: str, path: str, options: Mapping[str, Any]) -> None:
    """Register a classification set, which is read when it is first needed and kept in memory.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        kind: one of :data:`DATASET_KINDS`.
        path: handed to its loader with
        options: by the names of the loader's arguments.

    Raises:
        InputError: for an unknown kind or option, or if the name stands for another data set.
    """
    if kind not in DATASET_KINDS:
        raise InputError(f"The data set {name!r} is of kind {kind!r}; there are {', '.join(DATASET_KINDS)}.")
    for option in options:
        if option not in DATASET_KINDS[kind].options:
            known = ", ".join(DATASET_KINDS[kind].options) or "none"
            raise InputError(f"The data set {name!r} of kind {kind!r} has no option {option!r}; there are {known}.")
    wanted = (kind, path, tuple(sorted(options.items())))
    if name in DatasetCatalog:
        if _REGISTERED.get(name) == wanted:
            return
        raise InputError(f"The data set name {name!r} is already registered for another data set; choose another.")
    _REGISTERED[name] = wanted

    @cache
    def load() -> List[Record]:
        content = DATASET_KINDS[kind].load(path, **options)
        set_metadata(name, thing_classes=content.class_names)
        return content.records

    DatasetCatalog.register(name, load)
    set_metadata(name, evaluator_type=EVALUATOR_TYPE, source=path)


_REGISTERED: Dict[str, Tuple] = {}


def is_classification_set(name: str) -> bool:
    """Return whether the data set ``name`` is one of image classification."""
    return MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE


def record_label(record: Record) -> int:
    """Return the label of a classification record."""
    return record["annotations"][0]["category_id"]


def _record(image_id: int, label: int, **where: Any) -> Record:
    return {"image_id": image_id, **where, "annotations": [{"category_id": label}]}


def _checked(records: List[Record], names: Optional[List[str]], source: str) -> ImageSet:
    if not records:
        raise InputError(f"{source} has no image.")
    largest = max(map(record_label, records))
    if names is None:
        names = [str(label) for label in range(largest + 1)]
    if largest >= len(names):
        raise InputError(f"{source} has the label {largest}; its {len(names)} classes are 0 to {len(names) - 1}.")
    return ImageSet(records, names)


def _text(path: PathLike) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None


@cache
def _read_npz(path: str, split: str) -> Tuple[np.ndarray, np.ndarray, List[str]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels = content[f"x_{split}"], np.asarray(content[f"y_{split}"], dtype=np.int64).reshape(-1)
            every = content["y_train"] if split == "test" else labels
            given = content["classes"].tolist() if "classes" in content.files else None
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; it should hold x_train, y_train, x_test, y_test.") from None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} is no .npz with x_{split} and y_{split} ({error}).") from None
    return _checked_arrays(images, labels, given or [str(k) for k in range(int(np.max(every)) + 1)], path)


@cache
def _read_cifar_archive(path: str, split: str) -> Tuple[np.ndarray, np.ndarray, List[str]]:
    files = _ArchiveFiles(path)
    is_100 = files.has("meta")
    names = files.read("meta" if is_100 else "batches.meta")[b"fine_label_names" if is_100 else b"label_names"]
    cifar10 = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    batches = [split] if is_100 else cifar10[split]
    parts = [files.read(batch) for batch in batches]
    try:
        images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([part[b"fine_labels" if is_100 else b"labels"] for part in parts])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is no CIFAR archive for Python ({error!r}).") from None
    return _checked_arrays(images, labels, [name.decode() for name in names], path)


def _checked_arrays(images: np.ndarray, labels: np.ndarray, names: List[str], path: str):
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) != len(labels):
        raise InputError(
            f"{path} has images {images.dtype} {list(images.shape)} and {len(labels)} labels; it should have uint8 "
            f"[N, H, W, 3] and N labels."
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(names):
        raise InputError(f"{path} has no labels, or some that are not in 0 to {len(names) - 1}.")
    return np.ascontiguousarray(images), labels, names


class _ArchiveFiles:
    """The pickled files of a CIFAR archive, unpacked or not."""

    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(
                f"{path}: there is no such file; it should be the folder cifar-10-batches-py or cifar-100-python, its "
                f".tar.gz, or an .npz."
            )
        self.contents: Dict[str, bytes] = {}
        if self.path.is_file():
            try:
                with tarfile.open(self.path) as archive:
                    for member in archive.getmembers():
                        file = archive.extractfile(member) if member.isfile() else None
                        if file is not None:
                            self.contents[Path(member.name).name] = file.read()
            except (tarfile.TarError, EOFError, OSError) as error:
                raise InputError(f"{path} is no CIFAR archive, or an incomplete one ({error}).") from None

    def has(self, name: str) -> bool:
        return name in self.contents or (self.path / name).is_file()

    def read(self, name: str) -> Dict[bytes, Any]:
        if not self.has(name):
            raise InputError(f"{self.path} has no file {name}; is it a CIFAR archive for Python?")
        content = self.contents.get(name)
        if content is None:
            content = (self.path / name).read_bytes()
        try:
            return unpickle(content, encoding="bytes")
        except pickle.UnpicklingError as error:
            raise InputError(f"{self.path}: {name} is damaged ({error}).") from None
