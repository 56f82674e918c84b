#!/usr/bin/env python
"""The command ``eql-d2 ensemble``: see ``eql_d2/commands/ensemble.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("ensemble")
