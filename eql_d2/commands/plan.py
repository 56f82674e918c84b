"""Look at a data set of one's own and plan the training: a page with figures and reasons, and a config that trains.

    eql-d2 plan annotations.json --images photographs/ --output plan/
    eql-d2 plan yolo/data.yaml --output plan/
    eql-d2 plan VOC2012/ --output plan/
    eql-d2 train --config-file plan/config.yaml OUTPUT_DIR plan/run

DATA is a json in COCO or LVIS format, YOLO's data.yaml, or a folder of Pascal VOC. Without --val a tenth of the images
is kept to validate on, more where every class can be on both sides only so. See docs/own_data.md.
"""

import argparse
from typing import Optional, Sequence

from eql_d2.planning import plan


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="the annotations to train on")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--images", metavar="DIR", help="image folder (default: images beside the json, or its folder)")
    parser.add_argument("--val", metavar="VAL", help="annotations to validate on, instead of a split")
    parser.add_argument("--val-images", metavar="DIR", help="their image folder (default: that of --images)")
    parser.add_argument("--split", type=float, default=0.1, metavar="SHARE", help="of the images, to validate on")
    parser.add_argument(
        "--min-images", type=int, default=0, metavar="N", help="leave out classes that are in fewer images (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default: 0)")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = vars(parse_arguments(argv))
    planned = plan(args.pop("data"), args.pop("output"), **args)
    for facts, part in ((planned.train, "to train on"), (planned.val, "to validate on")):
        if facts is not None:
            print(f"{len(facts.objects_of_image):,} images {part}, {len(facts.objects):,} objects: {facts.json_file}")
    print(f"{len(planned.train.categories)} classes, imbalance factor {planned.train.imbalance:.1f}\n")
    width = max(len(one.about) for one in planned.advice)
    for one in planned.advice:
        print(f"{one.about:<{width}}  {one.choice}")
    for words in planned.notes:
        print(f"\n{words}")
    print(f"\n{planned.page} has the reasons. Train it:\n    eql-d2 train --config-file {planned.config_file}")
