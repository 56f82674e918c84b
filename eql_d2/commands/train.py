"""Train or evaluate a config on one or many processes; the flags are those of Detectron2's tools/train_net.py."""

from typing import Optional, Sequence

from eql_d2.engine import argument_parser, launch, setup
from eql_d2.engine.trainer import run


def train(args) -> None:
    """What every process of the run does."""
    run(setup(args), args)


def main(argv: Optional[Sequence[str]] = None) -> None:
    launch(train, argument_parser().parse_args(argv))
