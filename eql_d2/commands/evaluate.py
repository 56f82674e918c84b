"""Score a results file in LVIS (or COCO) format, from whichever program it came.

    eql-d2 evaluate RESULTS.json --annotations lvis_v0.5_val.json
    eql-d2 evaluate RESULTS.json --annotations GT.json --fixed --per-category ap.csv \\
        --plot ap.png --train-json lvis_v0.5_train.json

Prints AP, AP50, AP75, APs/m/l, APr/c/f and AR in percent as a Markdown table; "n/a" where there is no ground truth.
Masks may be polygons or run lengths. The protocol is LVIS's if an image of the annotations has a negative or a
not-exhaustive set or a category has a frequency letter, as in training, else COCO's.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.evaluation.rescore import rescore


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="detections in the submission format")
    parser.add_argument("--annotations", type=Path, required=True, metavar="GT.json", help="the annotation file")
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
    parser.add_argument("--backend", choices=("auto", "hotcoco", "lvis"), default="auto", help="the evaluator to use")
    parser.add_argument(
        "--train-json", type=Path, metavar="FILE", help="training annotations, for groups and training counts"
    )
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    print(rescore(**vars(parse_arguments(argv))))
