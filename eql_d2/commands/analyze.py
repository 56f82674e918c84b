"""Look inside trained classifiers: gradients, probabilities, weights, AP by category, confusion of rare categories.

    eql-d2 analyze RUN [RUN ...] --output DIR [--names A B] [--only gradients ap ...] [--dataset NAME]

A run is an output folder of ``eql-d2 train``. Each analysis writes tables (CSV) and a figure (PNG, SVG) to DIR; with
several runs each is drawn on the same figure. Exit status: 0, or 2 if something is missing or does not fit.
"""

import argparse
import logging
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.analysis import ANALYSES, analyze
from eql_d2.engine.launch import ALLOW_MISSING
from eql_d2.run_folder import FINAL_WEIGHTS


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    listed = "analyses:\n" + "\n".join(f"  {name:<18}{title}" for name, title in ANALYSES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of eql-d2 train")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for tables and figures")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs; default: their folders' names")
    parser.add_argument("--only", nargs="+", metavar="ANALYSIS", help="default: all (listed below)")
    parser.add_argument("--dataset", metavar="NAME", help="to run the models over; default: first of DATASETS.TRAIN")
    parser.add_argument("--max-images", type=int, default=0, metavar="N", help="every n-th image, at most N; 0: all")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: MODEL.DEVICE of each run")
    parser.add_argument("--weights", default=FINAL_WEIGHTS, metavar="FILE", help="in each run (%(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help=ALLOW_MISSING)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = vars(parse_arguments(argv))
    # Only boxes are looked at: that the checkpoint has a mask head too is nothing to warn of.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    for produced in analyze(arguments.pop("runs"), arguments.pop("output"), **arguments):
        print(f"{produced.title}: {', '.join(str(path) for path in [*produced.csvs, produced.png, produced.svg])}")
