#!/usr/bin/env python
"""Train a detector, then its classifier alone; the same command again goes on in the stage that was interrupted.

tools/train_two_stage.py --stage1 CONFIG --stage2 CONFIG [flags of tools/train_net.py] [KEY VALUE ...]
"""

from eql_d2.engine import launch
from eql_d2.engine.two_stage import train_two_stages, two_stage_parser


def main(args):
    train_two_stages(args)


if __name__ == "__main__":
    launch(main, two_stage_parser().parse_args())
