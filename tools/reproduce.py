#!/usr/bin/env python
"""The command ``eql-d2 reproduce``: see ``eql_d2/commands/reproduce.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("reproduce")
