"""Check a data set: files, counts, ids, polygons, image-level labels; classes and files of classification; index masks.

    eql-d2 check-dataset lvis_v0.5_train openimages_challenge2019_val ade20k_150_train
    eql-d2 check-dataset --json my_train.json --images my_images/
    eql-d2 check-dataset --config-file configs/classification/cifar100lt/seql.yaml cifar100_lt_200_train

Exit status: 0 if nothing is wrong, 1 if there are errors, 2 if the data set cannot be read at all.
"""

import argparse
from typing import Iterable, Optional, Sequence

from eql_d2.data.check import Report, check_dataset
from eql_d2.data.check_images import check_image_set
from eql_d2.data.check_masks import check_masks
from eql_d2.data.check_open_images import check_open_images
from eql_d2.data.classification import is_classification_set
from eql_d2.data.open_images import is_open_images
from eql_d2.data.semantic import is_segmentation_set
from eql_d2.errors import InputError


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered data sets, such as lvis_v1_val")
    parser.add_argument("--config-file", default="", help="a config whose own data sets may be named, too")
    parser.add_argument("--json", help="annotations in LVIS or COCO format, instead of a name")
    parser.add_argument("--images", help="the image folder of --json; without it the images are not checked")
    parser.add_argument("--no-images", action="store_true", help="do not read the image files of registered data sets")
    parser.add_argument("--examples", type=int, default=5, help="examples of each error (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if bool(arguments.names) == bool(arguments.json):
        parser.error("give either names of registered data sets or --json")
    return arguments


def main(argv: Optional[Sequence[str]] = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.config_file:
        _register(arguments.config_file)
    if arguments.json:
        reports: Iterable[Report] = [
            check_dataset(arguments.json, arguments.images, "", arguments.examples, _progress_bar)
        ]
    else:
        reports = (_check_registered(name, not arguments.no_images, arguments.examples) for name in arguments.names)
    has_errors = False
    for report in reports:
        print("\n".join(report.lines()))
        has_errors |= report.has_errors
    return int(has_errors)


def _register(config_file: str) -> None:
    from eql_d2.config import load_config
    from eql_d2.data.builtin import register_from_config

    register_from_config(load_config(config_file))


def _check_registered(name: str, with_images: bool, max_examples: int) -> Report:
    from detectron2.data import MetadataCatalog

    from eql_d2.data.catalog import check_registered

    check_registered(name)
    metadata = MetadataCatalog.get(name)
    if is_classification_set(name):
        return check_image_set(name, with_images, max_examples, _progress_bar)
    if is_segmentation_set(name):
        return check_masks(name, with_images, max_examples, _progress_bar)
    image_root = metadata.get("image_root") if with_images else None
    if is_open_images(name):
        return check_open_images(name, metadata.open_images_files, image_root, max_examples, _progress_bar)
    if metadata.get("json_file") is None:
        raise InputError(
            f"{name} was not registered from a json; only data sets in LVIS or COCO format, of Open Images, of image "
            f"classification and of semantic segmentation can be checked."
        )
    return check_dataset(metadata.json_file, image_root, name, max_examples, _progress_bar)


def _progress_bar(images):
    from tqdm import tqdm

    return tqdm(images, desc="images", disable=None)  # disable=None: silent unless on a terminal
