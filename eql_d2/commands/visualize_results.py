"""Draw the ground truth beside the detections of one or more models: pictures and HTML pages.

    eql-d2 visualize-results output/sigmoid output/eql --only rare --sort difference --output output/look
    eql-d2 visualize-results a.json b.json --annotations val.json --images val/ --output output/look

Scores of different methods are not comparable, so each model shows as many of its best detections as an image has
annotated objects, unless --best or --conf-threshold says otherwise.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.visualization.arguments import add_gallery_arguments
from eql_d2.visualization.comparison import SORTS
from eql_d2.visualization.results import visualize_results


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="RUN", help="output folders of trainings, or results files (json)"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: the ends of the paths)")
    parser.add_argument("--config-file", default="", metavar="YAML", help="names the data set (default: a run's)")
    parser.add_argument("--dataset", default="", metavar="NAME", help="(default: the first of the config's test sets)")
    detections = parser.add_mutually_exclusive_group()
    detections.add_argument("--conf-threshold", type=float, metavar="SCORE", help="draw all from this score on")
    detections.add_argument("--best", type=int, default=0, metavar="N", help="draw the N best of each image")
    parser.add_argument("--sort", choices=SORTS, default="dataset", help="what comes first (default: %(default)s)")
    add_gallery_arguments(parser, per_page=20)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    print(visualize_results(**vars(parse_arguments(argv))))
