"""Print how long a config trains on the data at hand: images of an epoch, iterations, epochs.

eql-d2 schedule --config-file CONFIG [KEY VALUE ...] [--epochs 12 8 11]

Repeat-factor sampling enlarges an epoch, and a release's 12 epochs are often of the enlarged set; --epochs prints the
SOLVER settings that train so many. Its further numbers are the epochs after which the learning rate falls.
"""

from typing import Optional, Sequence

from eql_d2.config import load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.engine.schedule import describe_schedule, schedule_parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = schedule_parser().parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    register_from_config(cfg)
    fit_to_data(cfg)
    print("\n".join(describe_schedule(cfg, args)))
