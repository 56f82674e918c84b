"""Command-line options that the tools which write galleries share."""

import argparse
from pathlib import Path


def add_gallery_arguments(parser: argparse.ArgumentParser, per_page: int) -> None:
    """Add what says which images are drawn and where the pages go; ``per_page`` is the default of ``--per-page``."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="where to write; begin at its index.html")
    add("--annotations", type=Path, metavar="JSON", help="annotations in LVIS or COCO format")
    add("--images", type=Path, metavar="FOLDER", help="the images of --annotations")
    add("--only", default="", metavar="WHAT", help="rare, common, frequent or the name of a class")
    add("--max-images", type=int, default=100, metavar="N", help="0 for all (default: %(default)s)")
    add("--seed", type=int, help="shuffle the images with this seed (default: the order of the json)")
    add("--per-page", type=int, default=per_page, metavar="N", help="images on a page (default: %(default)s)")
    add("--size", type=int, default=640, metavar="PIXELS", help="longer side of the pictures (default: %(default)s)")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
