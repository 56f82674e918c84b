#!/usr/bin/env python
"""The command ``eql-d2 analyze``: see ``eql_d2/commands/analyze.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("analyze")
