#!/usr/bin/env python
"""The command ``eql-d2 install-detectron2``: see ``eql_d2/commands/install_detectron2.py``."""

from eql_d2.cli import run

if __name__ == "__main__":
    run("install-detectron2")
