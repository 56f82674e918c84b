#!/usr/bin/env python
"""Write the statistics of a trained model's logits, for MODEL.LONG_TAIL.CALIBRATION.LOGN.STATISTICS.

tools/calibrate.py --config-file CONFIG [--output FILE] [--dataset NAME] [--max-images N] MODEL.WEIGHTS FILE
"""

from eql_d2.engine import launch, setup
from eql_d2.engine.calibrate import calibrate, calibrate_parser


def main(args):
    calibrate(setup(args), args)


if __name__ == "__main__":
    launch(main, calibrate_parser().parse_args())
