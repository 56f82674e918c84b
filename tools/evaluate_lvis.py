#!/usr/bin/env python
"""The earlier name of ``tools/evaluate.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("evaluate")
