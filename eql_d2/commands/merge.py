"""Merge data sets into one file in LVIS format: one label space, each image with what its source verified.

    eql-d2 merge merge.yaml --output datasets/merged_train.json

merge.yaml names the data sets and which of their categories are the same, see docs/merged_data.md:

    categories: lvis/lvis_v1_train.json
    sources:
      - {name: lvis, json: lvis/lvis_v1_train.json, images: coco}
      - {name: coco, json: coco/annotations/instances_train2017.json, adds_to: lvis, categories: {hot dog: sausage}}

Paths start at --root, which is the image folder of the merged set.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.data.builtin import data_root
from eql_d2.data.merge import merge_files
from eql_d2.data.merge_mapping import read_mapping


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mapping", type=Path, metavar="MAPPING", help="what is merged, and how: YAML or json")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="the file to write")
    parser.add_argument("--root", metavar="DIR", help="folder of the data (default: $DETECTRON2_DATASETS, or datasets)")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    root = data_root() if args.root is None else args.root
    for report in merge_files(read_mapping(args.mapping), args.output, root):
        print(report)
    print(f"\n{args.output} holds the merged set, its images lie below {root}.")
