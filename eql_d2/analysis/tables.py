"""Rows of the tables: numbers of each category beside its name, group and training counts."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from eql_d2.analysis.regions import RegionStatistics
from eql_d2.data.catalog import check_registered
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.registration import open_table

Row = Dict[str, Any]


@dataclass(frozen=True, eq=False)
class Categories:
    """The K categories of a training set.

    Attributes:
        names: K names, by label.
        frequency: counts and groups.
    """

    names: Sequence[str]
    frequency: CategoryFrequency

    @classmethod
    def of_dataset(cls, frequency: CategoryFrequency, dataset_names: Sequence[str] = ()) -> "Categories":
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

    def row(self, label: int) -> Row:
        """Return the columns that say which category it is."""
        return {
            "label": label,
            "name": self.names[label],
            "group": self.frequency.groups[label],
            "train_images": int(self.frequency.image_count[label]),
            "train_instances": int(self.frequency.instance_count[label]),
        }


def number(value: float) -> Optional[float]:
    """Return a float, ``None`` for NaN."""
    return None if math.isnan(value) else float(value)


def category_table(categories: Categories, columns: Mapping[str, Tensor], **first: Any) -> List[Row]:
    """Return one row for each category, by falling number of training images.

    Args:
        categories: K of them.
        columns: numbers ``[K]`` by column; NaN becomes ``None``.
        **first: columns before all others, the same in each row.
    """
    listed = {name: values.tolist() for name, values in columns.items()}
    return [
        {**first, **categories.row(label), **{name: number(values[label]) for name, values in listed.items()}}
        for label in categories.order().tolist()
    ]


def region_columns(statistics: RegionStatistics) -> Dict[str, Tensor]:
    """Return counts and means of :class:`~eql_d2.analysis.regions.RegionStatistics`, float64 ``[K]`` each."""
    counts = {"positives": statistics["positives"], "negatives": statistics.negatives}
    sums = {name: statistics[name] for name in ("positive_gradient", "negative_gradient")}
    return {**counts, **sums, **statistics.means()}


def region_rows(statistics: Sequence[RegionStatistics], categories: Categories) -> List[Row]:
    """Return one row for each stage and category.

    Columns: ``stage`` (0 but in a cascade), the category's, ``positives`` and ``negatives`` (regions),
    ``positive_gradient`` and ``negative_gradient`` (sums of ``|dL/dz|``), and those of
    :meth:`~eql_d2.analysis.regions.RegionStatistics.means`.
    """
    rows: List[Row] = []
    for stage, of_stage in enumerate(statistics):
        rows += category_table(categories, region_columns(of_stage), stage=stage)
    return rows
