#!/usr/bin/env python
"""The command ``eql-d2 merge``: see ``eql_d2/commands/merge.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("merge")
