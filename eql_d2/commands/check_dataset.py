"""Check a data set: files, counts, ids, polygons, image-level labels; of image classification, classes and files.

    eql-d2 check-dataset lvis_v0.5_train lvis_v0.5_val
    eql-d2 check-dataset --json my_train.json --images my_images/
    eql-d2 check-dataset --config-file configs/classification/cifar100lt/seql.yaml cifar100_lt_200_train

Exit status: 0 if nothing is wrong, 1 if there are errors, 2 if the data set cannot be read at all.
"""

import argparse
from typing import Optional, Sequence

from eql_d2.data.check import check_dataset
from eql_d2.data.check_images import check_image_set
from eql_d2.data.classification import is_classification_set
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
        sets = [("", arguments.json, arguments.images)]
    else:
        sets = [(name, *_files_of(name, not arguments.no_images)) for name in arguments.names]
    has_errors = False
    for name, json_file, image_root in sets:
        if json_file is None:
            report = check_image_set(name, not arguments.no_images, arguments.examples, _progress_bar)
        else:
            report = check_dataset(json_file, image_root, name, arguments.examples, _progress_bar)
        print("\n".join(report.lines()))
        has_errors |= report.has_errors
    return int(has_errors)


def _register(config_file: str) -> None:
    from eql_d2.config import load_config
    from eql_d2.data.builtin import register_from_config

    register_from_config(load_config(config_file))


def _files_of(name: str, with_images: bool) -> tuple:
    """Return the json and the image folder of a data set, ``None`` for those of image classification."""
    from detectron2.data import MetadataCatalog

    from eql_d2.data.catalog import check_registered

    check_registered(name)
    metadata = MetadataCatalog.get(name)
    if is_classification_set(name):
        return None, None
    if metadata.get("json_file") is None:
        raise InputError(
            f"{name} was not registered from a json; only data sets in LVIS or COCO format and of image "
            f"classification can be checked."
        )
    return metadata.json_file, metadata.get("image_root") if with_images else None


def _progress_bar(images):
    from tqdm import tqdm

    return tqdm(images, desc="images", disable=None)  # disable=None: silent unless on a terminal
