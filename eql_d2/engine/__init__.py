"""Training and evaluation runs: configuration, launching, the trainer."""

import eql_d2.config  # noqa: F401  (first: it checks which Detectron2 there is)
from eql_d2.engine.launch import argument_parser, launch
from eql_d2.engine.setup import setup
from eql_d2.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch", "setup"]
