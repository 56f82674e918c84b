"""Choose the score from which each class is shown, on the detections of a validation set.

    eql-d2 thresholds output/mine                     # a run that was evaluated: writes output/mine/thresholds.json
    eql-d2 thresholds output/mine --precision 0.9     # the lowest threshold with 90% precision, not the best F1
    eql-d2 thresholds RESULTS.json --annotations val.json --output thresholds.json

The file belongs beside the weights: eql-d2 predict and eql_d2.Predictor find it there.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence, Tuple

import numpy as np
from detectron2.data import MetadataCatalog

from eql_d2.data.builtin import register_from_config
from eql_d2.errors import InputError
from eql_d2.evaluation.rescore import iou_types_of
from eql_d2.evaluation.thresholds import Thresholds, fit_thresholds
from eql_d2.run_folder import RunFolder


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RUN", help="a run's output folder, or a file of detections")
    parser.add_argument("--dataset", metavar="NAME", help="of several that the run was evaluated on")
    parser.add_argument("--annotations", type=Path, metavar="GT.json", help="for a file of detections")
    parser.add_argument("--precision", type=float, metavar="P", help="reach this precision; default: the best F1")
    parser.add_argument("--iou", type=float, default=0.5, help="overlap from which a detection is right (default 0.5)")
    parser.add_argument("--iou-type", choices=("bbox", "segm"), help="default: masks if the detections have them")
    parser.add_argument(
        "--min-objects", type=int, default=5, metavar="N",
        help="classes with fewer objects get the threshold of all classes together (default 5)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: thresholds.json in the run's folder")
    return parser.parse_args(argv)


def detections_and_truth(args: argparse.Namespace) -> Tuple[Path, Path]:
    """Return the file of detections and the annotations that it is compared with."""
    if not args.source.is_dir():
        if not args.annotations or not args.output:
            raise InputError(f"{args.source} is no output folder of a run; a file needs --annotations and --output.")
        return args.source, args.annotations
    run = RunFolder(args.source)
    register_from_config(run.cfg)
    dataset = run.evaluated_dataset(args.dataset)
    return run.detections_file(dataset), args.annotations or Path(MetadataCatalog.get(dataset).json_file)


def summary(thresholds: Thresholds) -> str:
    """Return one line about what the thresholds give, on average over the classes that have objects."""
    own = sum(point.source == "own" for point in thresholds.classes)
    values = [(point.precision or 0.0, point.recall) for point in thresholds.classes if point.recall is not None]
    precision, recall = np.mean(values, axis=0) * 100 if values else (float("nan"),) * 2
    return (
        f"{len(thresholds.classes)} classes, {own} with a threshold of their own, the others with "
        f"{thresholds.pooled:.3f}, that of all together; mean precision {precision:.1f}, recall {recall:.1f} here"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    detections, annotations = detections_and_truth(args)
    thresholds = fit_thresholds(
        annotations,
        detections,
        args.iou_type or iou_types_of(detections)[-1],
        precision=args.precision,
        iou=args.iou,
        min_objects=args.min_objects,
    )
    output = args.output or RunFolder(args.source).thresholds_file
    thresholds.save(output)
    print(f"{output}: {summary(thresholds)}")
