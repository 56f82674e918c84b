#!/usr/bin/env python
"""The command ``eql-d2 train-two-stage``: see ``eql_d2/commands/train_two_stage.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("train-two-stage")
