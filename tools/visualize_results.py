#!/usr/bin/env python
"""The command ``eql-d2 visualize-results``: see ``eql_d2/commands/visualize_results.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("visualize-results")
