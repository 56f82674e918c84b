"""Generate the mini data set: long-tailed, in LVIS format, small enough to train on without a GPU.

    eql-d2 make-mini-dataset --output datasets/mini

Does nothing if the set is there already. ``--statistics`` prints what ``docs/mini_dataset.md`` states.
"""

import argparse
import json
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.mini.generate import MiniParameters, generate_mini_dataset, lvis_statistics


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    defaults = MiniParameters()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write; created if it is absent")
    for option, field, what in (
        ("--classes", "num_classes", "number of classes"),
        ("--train-images", "num_train", "number of training images"),
        ("--val-images", "num_val", "number of validation images"),
        ("--test-images", "num_test", "number of images without annotations"),
        ("--image-size", "image_size", "side of the square images in pixels"),
        ("--seed", "seed", "seed of all random choices"),
        ("--first-class", "first_class", "appearances to leave out: 60 gives no class of the default set"),
    ):
        default = getattr(defaults, field)
        parser.add_argument(
            option, dest=field, type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--balanced-train", action="store_true", help="as many training images for every class: a set to pre-train on"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a set made with other parameters")
    parser.add_argument("--statistics", action="store_true", help="print the statistics of train and val")
    return parser.parse_args(argv)


def print_statistics(folder: Path) -> None:
    """Print the statistics of both annotated splits side by side, and how many objects have no annotation."""
    splits = ("train", "val")
    statistics = {split: lvis_statistics(json.loads((folder / f"{split}.json").read_text())) for split in splits}
    unannotated = json.loads((folder / "mini.json").read_text())["unannotated_objects"]
    for split in splits:
        statistics[split]["unannotated objects"] = unannotated[split]
    print(f"{'':40}" + "".join(f"{split:>10}" for split in splits))
    for name in statistics["train"]:
        values = [statistics[split][name] for split in splits]
        print(f"{name:40}" + "".join(f"{v:>10.2f}" if isinstance(v, float) else f"{v:>10}" for v in values))


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = vars(parse_arguments(argv))
    output, statistics = args.pop("output"), args.pop("statistics")
    folder = generate_mini_dataset(output, **args)
    print(f"{folder} holds the generated data set.")
    if statistics:
        print_statistics(folder)
