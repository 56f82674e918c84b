#!/usr/bin/env python
"""The command ``eql-d2 train``: see ``eql_d2/commands/train.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("train")
