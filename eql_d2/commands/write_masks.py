"""Paint the instances of a json in LVIS or COCO format into index masks, for semantic segmentation.

    eql-d2 write-masks --json lvis/lvis_v1_train.json --images coco --output datasets/lvis_v1_masks/train
    eql-d2 write-masks --json birds/train.json --images birds/images --output datasets/bird_masks --background-class

Writes masks/*.png, named as the images, and classes.txt, and prints the entry for a config. Larger instances are
painted first. Crowd regions have no label (255, or 65535 from 255 classes on), and neither have pixels of no instance,
unless --background-class makes them a class: for sets in which every instance of every class is annotated, as in LVIS
it is not.
"""

import argparse
import os
from typing import Optional, Sequence

import yaml

from eql_d2.data.index_masks import ignore_label_of
from eql_d2.data.painted_masks import CLASSES_FILE, MASK_FOLDER, paint_dataset


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", required=True, metavar="FILE", help="annotations in LVIS or COCO format, with masks")
    parser.add_argument("--images", required=True, metavar="DIR", help="the image folder; images are not opened")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; created if it is absent")
    background = "a last class for pixels of no instance, where all instances are annotated"
    parser.add_argument("--background-class", action="store_true", help=background)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers is {arguments.workers}; it must be at least 1")
    return arguments


def main(argv: Optional[Sequence[str]] = None) -> None:
    from tqdm import tqdm

    arguments = parse_arguments(argv)
    number, names = paint_dataset(
        arguments.json,
        arguments.images,
        arguments.output,
        arguments.background_class,
        arguments.workers,
        lambda done, total: tqdm(done, desc="masks", total=total, disable=None),  # None: silent unless on a terminal
    )
    output = os.path.abspath(arguments.output)
    entry = {
        "name": os.path.basename(output),
        "images": os.path.abspath(arguments.images),
        "masks": os.path.join(output, MASK_FOLDER),
        "classes": os.path.join(output, CLASSES_FILE),
        "ignore": ignore_label_of(len(names)),
    }
    print(f"{arguments.output} holds {number} masks of {len(names)} classes. For MODEL.LONG_TAIL.SEM_SEG.DATASETS:")
    print(yaml.safe_dump([entry], sort_keys=False).rstrip())
