"""Merge the results files of several detectors into one, from whichever programs they came.

    eql-d2 ensemble A.json B.json --output merged.json
    eql-d2 ensemble A.json B.json --method soft-nms --weights 1 0.8 --output merged.json \\
        --train-json lvis_v0.5_train.json --factor r=1.5 c=1.2
    eql-d2 ensemble A.json --expert COCO.json classes.json --annotations lvis_v0.5_val.json --output merged.json

Files are json lists of detections as LVIS and COCO take them, in any order; memory is that of one image. The detections
of a class in an image are merged: by NMS, by soft NMS, or by weighted boxes fusion, which has boxes only. An expert
counts for the classes that its second argument names alone: a text file with one class (id or name) on each line, or a
json object from its category ids to classes. --factor and --exponent change the scores of all but the experts,
factor * score ** exponent, by the group of the class in the training set. "eql-d2 evaluate" scores the merged file.
"""

import argparse
import math
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from eql_d2.data.annotations import check_content, read_annotations
from eql_d2.data.groups import GROUPS
from eql_d2.errors import InputError
from eql_d2.evaluation.checks import check_results
from eql_d2.evaluation.ensemble import Rescoring, ResultsFile, ensemble, expert_classes, rescoring_by_group
from eql_d2.evaluation.merging import Rule, nms, soft_nms, weighted_boxes_fusion

METHODS = ("nms", "soft-nms", "soft-nms-linear", "wbf")


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("results", type=Path, nargs="*", metavar="RESULTS", help="results files of detectors of all classes")
    add("--output", type=Path, required=True, metavar="FILE", help="the results file to write")
    add("--expert", type=Path, nargs=2, action="append", default=[], metavar=("RESULTS", "CLASSES"))
    add("--method", choices=METHODS, default="nms", help="default: nms; soft-nms is the Gaussian one")
    add("--iou", type=float, help="overlap of boxes of one object (default: 0.5; wbf: 0.55)")
    add("--sigma", type=float, default=0.5, help="of soft-nms (default: 0.5)")
    add("--weights", type=float, nargs="+", metavar="W", help="factor of each file's scores, the experts' last")
    add("--factor", nargs="+", default=[], metavar="GROUP=VALUE", help="as in r=1.5 c=1.2")
    add("--exponent", nargs="+", default=[], metavar="GROUP=VALUE", help="as in r=0.5")
    add("--train-json", type=Path, metavar="FILE", help="training annotations, for the groups")
    add("--annotations", type=Path, metavar="GT", help="check the files against these; has the names of classes")
    add("--max-detections", type=int, default=300, metavar="N", help="of an image (default: 300; negative: all)")
    add("--min-score", type=float, default=0.0, metavar="S", help="detections with less after merging are left out")
    add("--boxes-only", action="store_true", help="leave masks out")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    content = None
    if args.annotations is not None:
        content = read_annotations(args.annotations)
        check_content(content, args.annotations)
    sources = _sources(args, content)
    if content is not None:
        for source in sources:
            if source.classes is None:
                check_results(source.path, content, ["bbox"])
    rescoring = _rescoring(args)
    rule = _rule(args)
    images = ensemble(sources, args.output, rule, rescoring, args.max_detections, args.min_score, args.boxes_only)
    print(f"{args.output}: {images} images of {len(sources)} files.")


def _sources(args: argparse.Namespace, content) -> List[ResultsFile]:
    paths = [*args.results, *(path for path, _ in args.expert)]
    if not paths:
        raise InputError("There is nothing to merge; name results files, or experts with --expert.")
    weights = args.weights or [1.0] * len(paths)
    if len(weights) != len(paths) or not all(0 < weight < math.inf for weight in weights):
        raise InputError(
            f"--weights {' '.join(map(str, weights))} must be {len(paths)} numbers above 0, one for each file."
        )
    classes = [None] * len(args.results) + [expert_classes(path, content) for _, path in args.expert]
    return [ResultsFile(*one) for one in zip(paths, weights, classes)]


def _rule(args: argparse.Namespace) -> Rule:
    iou = args.iou if args.iou is not None else 0.55 if args.method == "wbf" else 0.5
    if not 0 <= iou <= 1:
        raise InputError(f"--iou is {iou}; it is between 0 and 1.")
    if not 0 < args.sigma < math.inf:
        raise InputError(f"--sigma is {args.sigma}; it is above 0.")
    if args.method == "wbf":
        if not args.boxes_only:
            raise InputError("--method wbf fuses boxes, and a fused box has no mask; add --boxes-only.")
        return weighted_boxes_fusion(iou)
    if args.method == "nms":
        return nms(iou)
    return soft_nms("linear" if args.method == "soft-nms-linear" else "gaussian", iou, args.sigma)


def _rescoring(args: argparse.Namespace):
    values: Dict[str, Dict[str, float]] = {}
    for name in ("factor", "exponent"):
        for given in getattr(args, name):
            group, _, value = given.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if group not in GROUPS or not 0 < number < math.inf:
                raise InputError(f"--{name} {given} must be r, c or f with a number above 0, as in r=1.5.")
            values.setdefault(group, {})[name] = number
    if not values:
        return None
    if args.train_json is None:
        raise InputError(
            "--factor and --exponent need the groups of the classes; name the training annotations with --train-json."
        )
    return rescoring_by_group(args.train_json, {group: Rescoring(**given) for group, given in values.items()})
