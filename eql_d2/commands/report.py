"""Write the report of a run, or the comparison of several, as one HTML page that needs nothing else.

    eql-d2 report output/eql --output report.html
    eql-d2 report output/sigmoid output/eql --output comparison.html

A run is the OUTPUT_DIR of eql-d2 train. The others are compared with the first.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.visualization.report import write_report


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of trainings")
    parser.add_argument("--output", type=Path, required=True, metavar="HTML", help="the page to write")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs (default: the ends of the paths)")
    parser.add_argument("--dataset", default="", metavar="NAME", help="(default: the first evaluated on)")
    parser.add_argument(
        "--max-images",
        type=int,
        default=6,
        metavar="N",
        help="the N worst, the N best and the N on which the runs differ most; 0 for none (default: %(default)s)",
    )
    parser.add_argument("--no-analysis", dest="analysis", action="store_false", help="leave the analyses out")
    parser.add_argument(
        "--analysis-images", type=int, default=0, metavar="N", help="images that the analyses look at, 0 for all"
    )
    parser.add_argument("--device", default="", help="of the analyses: cpu, cuda, ... (default: as the config says)")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    print(write_report(**vars(parse_arguments(argv))))
