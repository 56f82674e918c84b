#!/usr/bin/env python
"""The command ``eql-d2 predict``: see ``eql_d2/commands/predict.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("predict")
