#!/usr/bin/env python
"""The command ``eql-d2 schedule``: see ``eql_d2/commands/schedule.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("schedule")
