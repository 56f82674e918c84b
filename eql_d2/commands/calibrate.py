"""Write the statistics of a data set for MODEL.LONG_TAIL.CALIBRATION: of a model's logits (LOGN), of boxes (FRACAL).
With --tune, choose the free constants of a calibration, or tau of the tau-normalisation, on held-out data.

eql-d2 calibrate --config-file CONFIG [--output FILE] [--dataset NAME] [--max-images N] MODEL.WEIGHTS FILE
eql-d2 calibrate --tune --config-file CONFIG --dataset NAME [--metric NAME] [--grid KEY=V,V,...] MODEL.WEIGHTS FILE
"""

from typing import Optional, Sequence

from eql_d2.engine import launch, setup
from eql_d2.engine.calibrate import calibrate, calibrate_parser


def collect(args) -> None:
    """What every process of the run does."""
    calibrate(setup(args), args)


def main(argv: Optional[Sequence[str]] = None) -> None:
    launch(collect, calibrate_parser().parse_args(argv))
