"""Score a results file in LVIS or COCO format, or of Open Images, from whichever program it came.

    eql-d2 evaluate RESULTS.json --annotations lvis_v0.5_val.json
    eql-d2 evaluate RESULTS.json --annotations GT.json --fixed --per-category ap.csv \\
        --plot ap.png --train-json lvis_v0.5_train.json
    eql-d2 evaluate RESULTS.csv --annotations challenge-2019-validation-detection-bbox.csv --classes CLASSES.csv \\
        --image-labels LABELS.csv --hierarchy HIERARCHY.json --train-json challenge-2019-train-detection-bbox.csv

Prints AP, AP50, AP75, APs/m/l, APr/c/f and AR in percent as a Markdown table; "n/a" where there is no ground truth.
Masks may be polygons or run lengths. The protocol is LVIS's if an image of the annotations has a negative or a
not-exhaustive set or a category has a frequency letter, as in training, else COCO's. Of annotations in CSV it is
that of Open Images' challenge of 2019: AP at IoU 0.5, of all classes and of five groups of them, the rarest first.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.errors import InputError
from eql_d2.evaluation.rescore import rescore, rescore_open_images

# What only annotations of the one kind, or of the other, can be scored with.
_OF_JSON = ("iou_type", "fixed", "max_detections", "backend")
_OF_OPEN_IMAGES = ("classes", "image_labels", "hierarchy", "group_by", "group_of_weight")


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="detections in the submission format: json, or CSV of Open Images"
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="GT",
        help="the annotation file: json, or the CSV file of the boxes",
    )
    parser.add_argument(
        "--iou-type",
        nargs="+",
        choices=("bbox", "segm"),
        metavar="TYPE",
        help="bbox, segm or both (default: what the results hold)",
    )
    parser.add_argument(
        "--fixed", action="store_true", help="AP-fixed too: 10,000 detections per class, no cap per image"
    )
    parser.add_argument("--per-category", type=Path, metavar="FILE", help="write AP of each category (.csv or .json)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw AP of each category by its images")
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="detections that count of each image (default: 300 for LVIS, 100 of each class for COCO; -1: all)",
    )
    parser.add_argument("--backend", choices=("auto", "hotcoco", "lvis"), help="the evaluator to use (default: auto)")
    parser.add_argument(
        "--train-json", type=Path, metavar="FILE", help="training annotations, for groups and training counts"
    )
    open_images = parser.add_argument_group("Open Images")
    open_images.add_argument("--classes", type=Path, metavar="FILE.csv", help="label and name of each class")
    open_images.add_argument("--image-labels", type=Path, metavar="FILE.csv", help="verified image-level labels")
    open_images.add_argument("--hierarchy", type=Path, metavar="FILE.json", help="which classes stand above which")
    open_images.add_argument(
        "--group-by", choices=("instances", "images"), help="order of the five groups of classes (default: instances)"
    )
    open_images.add_argument("--group-of-weight", type=float, metavar="W", help="of a group-of box found (default: 1)")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = vars(parse_arguments(argv))
    given = {name: value for name, value in arguments.items() if value is not None and value is not False}
    is_open_images = given["annotations"].suffix == ".csv"
    misplaced = sorted(set(given) & set(_OF_JSON if is_open_images else _OF_OPEN_IMAGES))
    if misplaced:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in misplaced)
        kind = "of Open Images (CSV)" if is_open_images else "in LVIS or COCO format (json)"
        raise InputError(f"{options} cannot be used with annotations {kind}, such as {given['annotations']}.")
    if is_open_images:
        print(rescore_open_images(**{"classes": None, **given}))
    else:
        print(rescore(**given))
