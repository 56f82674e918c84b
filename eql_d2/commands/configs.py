"""List the configs of the package, or print where some of them lie.

    eql-d2 configs
    eql-d2 configs LVISv0.5/eql/mask_rcnn_R_50_FPN_paper Base-Mask-R-CNN-FPN

A name may stand wherever a command takes a --config-file; a path is what the ``_BASE_`` of a config of your own needs.
"""

import argparse
from typing import Optional, Sequence

from eql_d2.config_files import get_config_file, list_configs


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="print the paths of these instead")
    names = parser.parse_args(argv).names
    print("\n".join(map(get_config_file, names) if names else list_configs()))
