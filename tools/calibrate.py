#!/usr/bin/env python
"""The command ``eql-d2 calibrate``: see ``eql_d2/commands/calibrate.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("calibrate")
