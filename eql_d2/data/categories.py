"""One table of categories, ordered by frequency: numbers of each beside its name, group and training counts."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from eql_d2.data.catalog import check_registered
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.registration import open_table

#: Numbers of one category by column; its label, name, group and training counts come first.
CategoryRow = Dict[str, Any]


@dataclass(frozen=True, eq=False)
class CategoryTable:
    """The K categories of a training set.

    Attributes:
        names: K names, by label.
        frequency: counts and groups.
    """

    names: Sequence[str]
    frequency: CategoryFrequency

    @classmethod
    def of_dataset(cls, frequency: CategoryFrequency, dataset_names: Sequence[str] = ()) -> "CategoryTable":
        """Take the names from the first data set, which must be registered; the labels' numbers without one."""
        names: Optional[Sequence[str]] = None
        if dataset_names:
            check_registered(dataset_names[0])
            metadata = MetadataCatalog.get(dataset_names[0])
            names = metadata.get("thing_classes")
            if names is None and metadata.get("json_file"):
                names = open_table(metadata.json_file).class_names
        if names is None or len(names) != frequency.num_classes:
            names = [str(label) for label in range(frequency.num_classes)]
        return cls(list(names), frequency)

    def __len__(self) -> int:
        return self.frequency.num_classes

    def order(self) -> Tensor:
        """Return the labels by falling number of training images, int64 ``[K]``; equal counts by instances, label."""
        counts = self.frequency.image_count.double()
        counts = counts + self.frequency.instance_count.double() / (self.frequency.instance_count.max() + 1)
        return torch.argsort(counts, descending=True, stable=True)

    def row(self, label: int) -> CategoryRow:
        """Return the columns that say which category it is."""
        return {
            "label": label,
            "name": self.names[label],
            "group": self.frequency.groups[label],
            "train_images": int(self.frequency.image_count[label]),
            "train_instances": int(self.frequency.instance_count[label]),
        }

    def rows(self, columns: Mapping[str, Tensor], **first: Any) -> List[CategoryRow]:
        """Return one row for each category, by falling number of training images.

        Args:
            columns: numbers ``[K]`` by column; NaN becomes ``None``.
            **first: columns before all others, the same in each row.
        """
        listed = {name: values.tolist() for name, values in columns.items()}
        return [
            {**first, **self.row(label), **{name: number_or_none(values[label]) for name, values in listed.items()}}
            for label in self.order().tolist()
        ]


def number_or_none(value: float) -> Optional[float]:
    """Return a float, ``None`` for NaN."""
    return None if math.isnan(value) else float(value)
