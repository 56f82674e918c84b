"""Train five classifiers on the generated data set, print one table, draw one picture; what `make demo` runs."""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.experiments.demo import run_demo


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for runs, table and picture")
    parser.add_argument("--data", type=Path, default=Path("datasets/mini"), help="the data; generated if absent")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides for all methods: KEY VALUE ...")
    args = parser.parse_args(argv)
    run_demo(args.output, args.data, args.opts)
