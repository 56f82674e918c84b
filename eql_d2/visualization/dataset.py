"""The annotated images to draw: by registered name, from a config, from a run's folder or from two paths."""

import difflib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, List, Optional, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from eql_d2.data.build import long_tail_dataset_dicts
from eql_d2.data.builtin import register_from_config
from eql_d2.data.catalog import describe_dataset, frequency_of_records
from eql_d2.data.coco import load_coco
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.data.image_files import read_bgr
from eql_d2.data.lvis import load_lvis
from eql_d2.data.records import Record
from eql_d2.data.registration import open_table
from eql_d2.errors import InputError


@dataclass(frozen=True)
class AnnotatedSet:
    """Images with annotations, and the classes they speak of.

    Attributes:
        name: for titles.
        source: the json, for messages.
        records: Detectron2's dataset dicts, with contiguous labels everywhere.
        class_names: K names.
        groups: K letters r, c or f.
        labels: the contiguous label of each category id of the json.
    """

    name: str
    source: str
    records: Sequence[Record]
    class_names: Sequence[str]
    groups: Sequence[str]
    labels: Dict[int, int]

    @classmethod
    def from_files(cls, annotations: Path, images: Path) -> "AnnotatedSet":
        """Read a json in LVIS or COCO format; ``images`` is the folder of its images.

        Raises:
            InputError: if one is missing or the json is of neither format.
        """
        table = open_table(annotations)
        if not Path(images).is_dir():
            raise InputError(f"--images {images}: there is no such folder; it should hold the images of {annotations}.")
        records = (load_lvis if table.header.is_lvis else load_coco)(annotations, images)
        groups = list(table.frequency.groups)
        return cls(Path(annotations).stem, str(annotations), records, table.class_names, groups, table.contiguous_ids)

    @classmethod
    def from_name(cls, name: str, frequency_file: Optional[Path] = None) -> "AnnotatedSet":
        """Take a registered data set.

        Args:
            name: as in ``DATASETS.TRAIN``.
            frequency_file: the ``category_frequency.json`` of a training run. Its letters are taken, which in a set
                without letters of its own are those of the training set.

        Raises:
            InputError: if it is unknown or cannot be read, or the counts are of another number of classes.
        """
        records = long_tail_dataset_dicts([name], filter_empty=False)
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if not names:
            raise InputError(f"The metadata of {name} has no thing_classes; set it to the names of the categories.")
        groups = metadata.get("frequency_groups") or list(frequency_of_records(name).groups)
        if frequency_file is not None and Path(frequency_file).is_file():
            groups = list(CategoryFrequency.from_json(frequency_file).groups)
            if len(groups) != len(names):
                raise InputError(
                    f"{frequency_file} counts {len(groups)} classes, but {describe_dataset(name)} has {len(names)}."
                )
        labels = metadata.get("thing_dataset_id_to_contiguous_id") or {k + 1: k for k in range(len(names))}
        return cls(name, describe_dataset(name), records, names, groups, labels)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: str = "", frequency_file: Optional[Path] = None) -> "AnnotatedSet":
        """Take a data set that a config names; the first of ``DATASETS.TEST`` if ``dataset`` is empty.

        Raises:
            InputError: if the config names none, or as :meth:`from_name`.
        """
        register_from_config(cfg)
        name = dataset or next(iter(cfg.DATASETS.TEST), "")
        if not name:
            raise InputError("DATASETS.TEST of the config is empty; name a data set with --dataset.")
        return cls.from_name(name, frequency_file)

    def require_annotations(self) -> None:
        """Raise an :class:`~eql_d2.errors.InputError` unless the records have annotations."""
        if len(self.records) and "sem_seg_file_name" in self.records[0]:
            raise InputError(f"{self.source} has index masks, which are not drawn; name a set that has objects.")
        if len(self.records) and "annotations" not in self.records[0]:
            raise InputError(f"{self.source} has no annotations; name a set that has, such as a validation set.")

    def read_image(self, record: Record) -> np.ndarray:
        """Return the image of a record, uint8 BGR ``[H, W, 3]``.

        Raises:
            InputError: if it is missing or no image.
        """
        try:
            return read_bgr(record["file_name"])
        except FileNotFoundError:
            state = "is not there"
        except OSError as error:
            state = f"cannot be read as an image ({error})"
        raise InputError(f"{record['file_name']}, listed in {self.source}, {state}.")

    def select(self, only: str) -> Optional[FrozenSet[int]]:
        """Return the labels that ``only`` means: "rare", "common", "frequent" or the name of a class.

        Returns:
            ``None``, which means all, for "".

        Raises:
            InputError: if there is no such class, or no class of the group.
        """
        if not only:
            return None
        letters = {word: letter for letter, word in GROUP_NAMES.items()}
        if only in self.class_names:
            chosen = {label for label, name in enumerate(self.class_names) if name == only}
        elif only in letters:
            chosen = {label for label, letter in enumerate(self.groups) if letter == letters[only]}
        else:
            known = [*letters, *self.class_names]
            near = difflib.get_close_matches(only, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"--only {only!r} is neither rare, common, frequent nor a class of {self.source}{hint or '.'}"
            )
        if not chosen:
            raise InputError(f"--only {only}: no class of {self.source} is {only}.")
        return frozenset(chosen)

    def nothing_to_draw(self, only: str) -> InputError:
        """Return the error that no image has an object of the classes asked for; see :meth:`select`."""
        return InputError(f"{self.source} has no image with an object to draw{f' of --only {only}' if only else ''}.")

    def order(self, seed: Optional[int]) -> List[int]:
        """Return the indices of the records: as in the json, or shuffled by a seed."""
        indices = list(range(len(self.records)))
        if seed is not None:
            random.Random(seed).shuffle(indices)
        return indices
