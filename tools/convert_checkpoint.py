#!/usr/bin/env python
"""The command ``eql-d2 convert-checkpoint``: see ``eql_d2/commands/convert_checkpoint.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("convert-checkpoint")
