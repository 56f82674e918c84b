#!/usr/bin/env python
"""The command ``eql-d2 make-mini-dataset``: see ``eql_d2/commands/make_mini_dataset.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("make-mini-dataset")
