"""Install the pinned Detectron2 into the running Python's site-packages, unless it has a Detectron2 already.

Detectron2 has no official release on PyPI, so no dependency of this package can name one. The pin is
``eql_d2/detectron2.txt``; pip and a package index that it can reach are needed.
"""

import argparse
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Optional, Sequence

from eql_d2 import compat
from eql_d2.errors import InputError

REQUIREMENT = Path(compat.__file__).with_name("detectron2.txt")


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    if importlib.util.find_spec("detectron2") is None:
        # The wheel is tagged for CPython 3.10 but holds Python code only: telling pip so makes it fit any version.
        tags = ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
        target = ["--no-deps", "--target", sysconfig.get_paths()["purelib"], "--only-binary=:all:", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "install", *target, *tags, "-r", str(REQUIREMENT)]
        status = subprocess.run(command).returncode
        if status:
            raise InputError(f"pip could not install Detectron2 (exit status {status}); its own words are above.")
        importlib.invalidate_caches()
    print(compat.check_detectron2())
