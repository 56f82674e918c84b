"""``eql-d2 COMMAND ...`` and ``python -m eql_d2 COMMAND ...``: every command of the package behind one entry point."""

import importlib
import sys
from difflib import get_close_matches
from typing import List, NoReturn, Optional

from eql_d2 import __version__
from eql_d2.compat import SUPPORTED, quiet_warnings
from eql_d2.errors import InputError, run_tool

PROGRAM = "eql-d2"
#: What each command does; its module is that of the same name, with underscores, in :mod:`eql_d2.commands`.
COMMANDS = {
    "plan": "look at a data set of one's own, and write a page and a config that trains",
    "train": "train or evaluate a config, on one or many processes",
    "train-two-stage": "train a detector, then its classifier alone",
    "evaluate": "score a results file in LVIS or COCO format",
    "ensemble": "merge the results files of several detectors into one",
    "calibrate": "collect the logit statistics of a trained model",
    "thresholds": "the score from which each class is shown, from a validation set",
    "schedule": "images of an epoch, iterations and epochs of a config on its data",
    "convert-checkpoint": "weights of mmdetection, torchvision or timm for MODEL.WEIGHTS",
    "predict": "detections of a trained model on images, folders or a video",
    "export": "a trained detector as one file for ONNX Runtime or TorchScript",
    "reproduce": "run the tables of the papers and print them beside the published numbers",
    "analyze": "gradients, probabilities, weights, AP and confusion of trained classifiers",
    "report": "the report of a run, or the comparison of several, as one HTML page",
    "visualize-data": "draw the ground truth of a data set",
    "visualize-results": "draw the ground truth beside the detections of models",
    "configs": "list the configs of the package, or print where they lie",
    "check-dataset": "check a data set of any kind",
    "merge": "several data sets as one file in LVIS format, with what each image verifies",
    "write-masks": "paint the instances of a json into index masks for semantic segmentation",
    "make-mini-dataset": "generate a small long-tailed data set, of shapes or of photographs",
    "demo": "generate the data, train five classifiers, print one table, draw one picture",
    "install-detectron2": "install the pinned Detectron2, unless there is one",
}


def run(command: str, argv: Optional[List[str]] = None) -> NoReturn:
    """Run a command and exit with its status: 2 and one line on an :class:`~eql_d2.errors.InputError`.

    Args:
        command: a key of :data:`COMMANDS`. What it needs (torch, Detectron2) is imported now, and no earlier.
        argv: its arguments; those of this process by default.
    """

    def main() -> Optional[int]:
        quiet_warnings()
        try:
            module = importlib.import_module(f"eql_d2.commands.{command.replace('-', '_')}")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "detectron2":
                raise
            raise InputError(f"eql-d2 {command} needs Detectron2. Supported: {SUPPORTED}.") from None
        return module.main(argv)

    run_tool(main)


def main() -> NoReturn:
    """Take the command's name from the command line and run it."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if command == "--version":
        print(f"{PROGRAM} {__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        run_tool(lambda: _refuse(command))
    sys.argv[0] = f"{PROGRAM} {command}"  # how argparse, also Detectron2's, calls the program in its messages
    run(command, arguments)


def usage() -> str:
    """Return the help: every command with what it does."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {PROGRAM} COMMAND ... ({PROGRAM} COMMAND --help; {PROGRAM} --version)", ""]
    return "\n".join([*lines, *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())])


def _refuse(command: str) -> NoReturn:
    near = get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
    raise InputError(f"{PROGRAM} has no command {command!r}; {hint}")
