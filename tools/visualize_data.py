#!/usr/bin/env python
"""The command ``eql-d2 visualize-data``: see ``eql_d2/commands/visualize_data.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("visualize-data")
