#!/usr/bin/env python3
"""Write MODEL_ZOO.md from the configs and the published tables, or check that it is up to date."""

import argparse
import sys
from pathlib import Path

from eql_d2.experiments.references import make_model_zoo

OUTPUT = Path(__file__).resolve().parent.parent / "MODEL_ZOO.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    args = parser.parse_args()
    content = make_model_zoo()
    if not args.check:
        OUTPUT.write_text(content)
    elif not OUTPUT.is_file() or OUTPUT.read_text() != content:
        print("MODEL_ZOO.md is out of date; run: python tools/make_model_zoo.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
