"""Train a detector, then its classifier alone; the same command again goes on in the stage that was interrupted.

eql-d2 train-two-stage --stage1 CONFIG --stage2 CONFIG [flags of eql-d2 train] [KEY VALUE ...]
"""

from typing import Optional, Sequence

from eql_d2.engine import launch
from eql_d2.engine.two_stage import train_two_stages, two_stage_parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    launch(train_two_stages, two_stage_parser().parse_args(argv))
