#!/usr/bin/env python
"""The command ``eql-d2 report``: see ``eql_d2/commands/report.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("report")
