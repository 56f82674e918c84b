"""Draw the ground truth of a data set: pictures and HTML pages, with the image-level labels under each picture.

eql-d2 visualize-data --dataset lvis_v0.5_val --only rare --output output/look
eql-d2 visualize-data --config-file configs/mini/eql.yaml --source dataloader --output output/look
eql-d2 visualize-data --annotations mine/train.json --images mine/images --output output/look
"""

import argparse
from typing import Optional, Sequence

from eql_d2.visualization.arguments import add_gallery_arguments
from eql_d2.visualization.data import SOURCES, visualize_data


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="YAML", help="draw the data sets of this config")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="registered data sets")
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default="annotation",
        help="the annotations, or what the training loader makes of them (default: %(default)s)",
    )
    add_gallery_arguments(parser, per_page=40)
    arguments = parser.parse_args(argv)
    if bool(arguments.annotations) == bool(arguments.config_file or arguments.dataset):
        parser.error("give either --annotations and --images, or --config-file and/or --dataset")
    return arguments


def main(argv: Optional[Sequence[str]] = None) -> None:
    for page in visualize_data(**vars(parse_arguments(argv))):
        print(page)
