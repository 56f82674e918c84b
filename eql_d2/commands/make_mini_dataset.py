"""Generate a long-tailed data set in LVIS format, small enough to train on without a GPU.

    eql-d2 make-mini-dataset --output datasets/mini
    eql-d2 make-mini-dataset --output datasets/mini_openimages --format openimages
    eql-d2 make-mini-dataset --output datasets/mini_semseg --format masks
    eql-d2 make-mini-dataset --output datasets/mini_partly --format partly
    eql-d2 make-mini-dataset --output datasets/photographs --objects cifar100_lt.npz

The first draws shapes; the second gives them the files of Open Images (hierarchy, group-of boxes, verified labels),
with classes for each shape and a hue, too; the third paints them into index masks, for semantic segmentation, with the
background as the last class; the fourth makes two sets of the training images, each with half of the classes labelled,
and merges them (docs/merged_data.md); the fifth takes the photographs of a classification set (an .npz with x_train,
y_train, x_test, y_test and classes, or a CIFAR archive), four to an image. Does nothing if the set is there already.
``--statistics`` prints what ``docs/mini_dataset.md`` states.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

from eql_d2.errors import InputError
from eql_d2.mini import FORMATS, MiniParameters, lvis_statistics
from eql_d2.mini.folder import read_stamp
from eql_d2.mini.photographs import PhotographParameters, generate_photograph_dataset

#: Option, field of the parameters, what it is.
_NUMBERS = (
    ("--classes", "num_classes", "number of classes"),
    ("--train-images", "num_train", "number of training images"),
    ("--val-images", "num_val", "number of validation images"),
    ("--test-images", "num_test", "number of test images, of shapes without annotations (LVIS's format)"),
    ("--image-size", "image_size", "side of the square images in pixels"),
    ("--seed", "seed", "seed of all random choices"),
    ("--first-class", "first_class", "appearances to leave out: 60 gives no class of the default set"),
)


def parse_arguments(argv: Optional[Sequence[str]]) -> Dict[str, Any]:
    """Return the arguments that were given, by the names that the generators have for them."""
    shapes, photographs = MiniParameters(), PhotographParameters()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; created if it is absent")
    parser.add_argument("--objects", metavar="FILE", help="photographs in the place of shapes")
    parser.add_argument("--format", choices=FORMATS, help="of the files of shapes (default: lvis)")
    for option, field, what in _NUMBERS:
        default = f"default: {getattr(shapes, field)}"
        if hasattr(photographs, field) and getattr(photographs, field) != getattr(shapes, field):
            default += f", with --objects {getattr(photographs, field)}"
        elif not hasattr(photographs, field):
            default += ", not with --objects"
        parser.add_argument(option, dest=field, type=int, metavar="N", help=f"{what} ({default})")
    balanced = "as many training images for every class: a set to pre-train on (not with --objects)"
    parser.add_argument("--balanced-train", action="store_true", help=balanced)
    parser.add_argument("--overwrite", action="store_true", help="replace a set made with other parameters")
    parser.add_argument("--statistics", action="store_true", default=False, help="print the statistics of the set")
    given = vars(parser.parse_args(argv))
    if "objects" in given:
        names = {field: option for option, field, _ in _NUMBERS}
        names.update(balanced_train="--balanced-train", format="--format")
        useless = [names[field] for field in given if field in names and not hasattr(photographs, field)]
        if useless:
            raise InputError(f"{useless[0]} is of no use with --objects, whose photographs decide it; leave it out.")
    return given


def print_statistics(folder: Path) -> None:
    """Print the statistics of both annotated splits side by side and, of shapes, how many have no annotation."""
    unannotated = read_stamp(folder).get("unannotated_objects")
    splits = ("train", "test") if unannotated is None else ("train", "val")
    statistics = {split: lvis_statistics(json.loads((folder / f"{split}.json").read_text())) for split in splits}
    for split in splits if unannotated else ():
        statistics[split]["unannotated objects"] = unannotated[split]
    print(f"{'':40}" + "".join(f"{split:>10}" for split in splits))
    for name in statistics["train"]:
        values = [statistics[split][name] for split in splits]
        print(f"{name:40}" + "".join(f"{v:>10.2f}" if isinstance(v, float) else f"{v:>10}" for v in values))


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    output, statistics = args.pop("output"), args.pop("statistics")
    if statistics and args.get("format", "lvis") != "lvis":
        raise InputError("--statistics are those of LVIS's format; eql-d2 check-dataset prints those of other files.")
    generate: Callable[..., Path] = FORMATS[args.pop("format", "lvis")]
    if "objects" in args:
        generate = generate_photograph_dataset
    folder = generate(output, **args)
    print(f"{folder} holds the data set.")
    if statistics:
        print_statistics(folder)
