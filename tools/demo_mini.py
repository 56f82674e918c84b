#!/usr/bin/env python
"""The command ``eql-d2 demo``: see ``eql_d2/commands/demo.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("demo")
