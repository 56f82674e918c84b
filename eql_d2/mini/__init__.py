"""Data sets with LVIS's long tail for trainings that fit a CPU: generated shapes, or photographs."""

from eql_d2.mini.generate import MiniParameters, generate_mini_dataset
from eql_d2.mini.masks import generate_mask_dataset
from eql_d2.mini.open_images import generate_open_images_dataset
from eql_d2.mini.partly import generate_partly_labelled_dataset
from eql_d2.mini.records import lvis_statistics

#: What writes the generated shapes, by the format of the files.
FORMATS = {
    "lvis": generate_mini_dataset,
    "openimages": generate_open_images_dataset,
    "masks": generate_mask_dataset,
    "partly": generate_partly_labelled_dataset,
}

__all__ = [
    "FORMATS",
    "MiniParameters",
    "generate_mask_dataset",
    "generate_mini_dataset",
    "generate_open_images_dataset",
    "generate_partly_labelled_dataset",
    "lvis_statistics",
]
