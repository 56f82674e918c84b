#!/usr/bin/env python
"""Install the pinned Detectron2 into the running Python's site-packages, unless it has a Detectron2 already."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENT = Path(__file__).resolve().parent.parent / "requirements" / "detectron2.txt"


def main():
    if importlib.util.find_spec("detectron2") is None:
        # The wheel is tagged for CPython 3.10 but holds Python code only: telling pip so makes it fit any version.
        tags = ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
        target = ["--no-deps", "--target", sysconfig.get_paths()["purelib"], "--only-binary=:all:", "--require-hashes"]
        subprocess.run([sys.executable, "-m", "pip", "install", *target, *tags, "-r", str(REQUIREMENT)], check=True)
    from eql_d2.compat import check_detectron2

    print(check_detectron2())


if __name__ == "__main__":
    main()
