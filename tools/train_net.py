#!/usr/bin/env python
"""Train or evaluate a config on one or many processes; the flags are those of Detectron2's tools/train_net.py."""

from eql_d2.engine import argument_parser, launch, setup
from eql_d2.engine.trainer import run


def main(args):
    run(setup(args), args)


if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
