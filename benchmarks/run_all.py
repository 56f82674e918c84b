"""Run every benchmark of this folder and write what they print into one page.

    python benchmarks/run_all.py --output docs/performance.md

Each script runs in a process of its own, one after the other, on one thread. A script's section in the page is replaced
when it has ended well, so that an interrupted call loses nothing; ``--only`` runs some of them again.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SCRIPTS = {
    "postprocessing": ([], "Exact top-k post-processing"),
    "evaluation": ([], "LVIS evaluation"),
    "evaluation_at_scale": ([], "LVIS evaluation at scale"),
    "mask_encoding": ([], "Masks to run lengths"),
    "mask_head": ([], "Class-specific masks"),
    "box_deltas": ([], "Class-specific boxes"),
    "losses": ([], "Classifier losses"),
    "loading": ([], "Loading annotations"),
    "open_images_loading": ([], "Loading Open Images"),
    "open_images_evaluation": ([], "Open Images evaluation"),
    "training_step": (["--full"], "A training step"),
    "frozen_stage": (["--iterations", "250"], "A second stage of two"),
    "classification": ([], "A training step of an image classifier"),
    "one_stage": ([], "One-stage detectors"),
    "sem_seg": ([], "Segmentation heads"),
    "growth": ([], "Growth with the number of classes"),
}
HEADER = """# Performance

Written by `make bench`; every section by the command that it names, both sides in one run, equal results asserted.
Ratios travel better than seconds: the machine is named in each section.
"""


def machine() -> str:
    """Return the processor, the number of cores and the versions that matter."""
    import torch

    from eql_d2.experiments.execution import describe_machine

    described = describe_machine()
    return (
        f"{described['processor']}, {described['cores']} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def replace_section(page: str, title: str, section: str) -> str:
    """Return ``page`` with the section of this title replaced, or appended."""
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    return pattern.sub(lambda match: section, page) if pattern.search(page) else page + "\n" + section


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    args = parser.parse_args()
    failed = []
    for name in args.only:
        arguments, title = SCRIPTS[name]
        words = ["python", f"benchmarks/{name}.py", *arguments]
        print(" ".join(words), flush=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        print(done.stdout, flush=True)
        if done.returncode:
            failed.append(name)
            continue
        section = f"## {title}\n\n`OMP_NUM_THREADS=1 {' '.join(words)}` on {machine()}.\n\n{done.stdout.strip()}\n\n"
        page = args.output.read_text() if args.output.is_file() else HEADER
        temporary = args.output.with_suffix(".tmp")
        temporary.write_text(replace_section(page, title, section).rstrip() + "\n")
        temporary.replace(args.output)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed; their sections in {args.output} are unchanged.")


if __name__ == "__main__":
    main()
