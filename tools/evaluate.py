#!/usr/bin/env python
"""The command ``eql-d2 evaluate``: see ``eql_d2/commands/evaluate.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("evaluate")
