#!/usr/bin/env python
"""The command ``eql-d2 check-dataset``: see ``eql_d2/commands/check_dataset.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("check-dataset")
