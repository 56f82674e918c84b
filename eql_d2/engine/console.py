"""What a run shows on the console: the settings that matter, each warning once, and a progress bar in a terminal.

All else, such as the whole config and the structure of the model, is in ``OUTPUT_DIR/log.txt``.
"""

import logging
import sys
from typing import List, Set, TextIO

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from tqdm import tqdm

from eql_d2.data.classification import is_classification_set
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.errors import one_line

#: Lines that a message may have on the console; of a longer one only the first is shown.
MAX_LINES = 20
#: Logger of the losses of every twentieth iteration, for which a progress bar stands in.
_METRICS_LOGGER = "detectron2.utils.events"
#: Iterations between two losses beside the bar.
_PERIOD = 20


def setup_console(output_dir: str) -> None:
    """Set up Detectron2's log, to the console and to ``output_dir/log.txt``, and keep the console short.

    Called as Detectron2's ``default_setup`` does it, which then finds it done.
    """
    rank = comm.get_rank()
    for logger in (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
    ):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.addFilter(ConsoleFilter())
                handler.setFormatter(ShortFormatter(handler.formatter or logging.Formatter()))
                if sys.stdout.isatty():
                    handler.setStream(AboveTheBar())


class ConsoleFilter(logging.Filter):
    """Lets each warning through once, in a terminal no losses, which the progress bar shows, and no stack of an error
    that the tool says in one line at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == _METRICS_LOGGER and sys.stdout.isatty():
            return False
        if record.exc_info and record.exc_info[1] is not None and one_line(record.exc_info[1]) is not None:
            return False
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        is_new = message not in self.seen
        self.seen.add(message)
        return is_new


class ShortFormatter(logging.Formatter):
    """Formats as another one does, and leaves of a message of many lines the first.

    Args:
        whole: the other one.
    """

    def __init__(self, whole: logging.Formatter):
        super().__init__()
        self.whole = whole

    def format(self, record: logging.LogRecord) -> str:
        text = self.whole.format(record)
        first, *others = text.splitlines() or [""]
        is_short = len(others) < MAX_LINES or record.levelno >= logging.ERROR  # a stack is wanted whole
        return text if is_short else f"{first} ({len(others)} lines, in log.txt)"


class AboveTheBar:
    """A stream to standard output that does not run into a progress bar."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout, end="")

    def flush(self) -> None:
        sys.stdout.flush()


class ProgressBar(HookBase):
    """A bar with the iterations, the time that is left and the loss, for a terminal; on the main process.

    Args:
        stream: where it is drawn.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def before_train(self) -> None:
        first, last = self.trainer.start_iter, self.trainer.max_iter
        self.bar = tqdm(total=last, initial=first, file=self.stream, desc="train", unit="it", dynamic_ncols=True)

    def after_step(self) -> None:
        self.bar.update()
        latest = self.trainer.storage.latest()
        if self.trainer.iter % _PERIOD == 0 and "total_loss" in latest:
            self.bar.set_postfix(loss=f"{latest['total_loss'][0]:.3f}")

    def after_train(self) -> None:
        self.bar.close()


def settings_that_matter(
    cfg: CfgNode, model: nn.Module, frequency: CategoryFrequency, start_iter: int = 0
) -> List[str]:
    """Return at most twenty lines that say what is trained, on what, how long, and from where.

    Args:
        cfg: of the run.
        model: its model.
        frequency: counts of its training set.
        start_iter: where a training goes on.
    """
    sampler, solver, size = cfg.DATALOADER.SAMPLER_TRAIN, cfg.SOLVER, cfg.INPUT
    if sampler == "RepeatFactorTrainingSampler":
        sampler += f", threshold {cfg.DATALOADER.REPEAT_THRESHOLD:.4g}"
    groups = ", ".join(f"{count} {GROUP_NAMES[group]}" for group, count in frequency.group_sizes().items())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / frequency.num_images
    rows = [
        ("loss", cfg.MODEL.LONG_TAIL.LOSS),
        ("training set", f"{', '.join(cfg.DATASETS.TRAIN)}, {frequency.num_images:,} images"),
        ("test set", ", ".join(cfg.DATASETS.TEST) or "none"),
        ("classes", f"{frequency.num_classes}: {groups}"),
        ("sampler", sampler),
        (
            "model",
            f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}, {trained / 1e6:.1f} M parameters trained",
        ),
        ("starts from", f"iteration {start_iter}" if start_iter else cfg.MODEL.WEIGHTS or "scratch"),
        ("iterations", f"{solver.MAX_ITER:,} of {solver.IMS_PER_BATCH} images, {epochs:.1f} times the training set"),
        ("learning rate", f"{solver.BASE_LR:g}, falls after {', '.join(map(str, solver.STEPS)) or 'no iteration'}"),
        ("image size", f"{', '.join(map(str, size.MIN_SIZE_TRAIN))} of at most {size.MAX_SIZE_TRAIN}"),
        ("image size, test", f"{size.MIN_SIZE_TEST} of at most {size.MAX_SIZE_TEST}"),
        ("detections", f"{cfg.TEST.DETECTIONS_PER_IMAGE} of an image"),
        ("evaluation", f"every {cfg.TEST.EVAL_PERIOD:,} iterations" if cfg.TEST.EVAL_PERIOD else "at the end"),
        ("runs on", f"{cfg.MODEL.DEVICE}, {comm.get_world_size()} process{'es' * (comm.get_world_size() > 1)}"),
        ("seed", str(cfg.SEED)),
        ("output", f"{cfg.OUTPUT_DIR} (all settings: config.yaml, the model's structure: log.txt)"),
    ]
    if any(map(is_classification_set, cfg.DATASETS.TRAIN)):
        rows = [(name, value) for name, value in rows if name not in ("image size", "image size, test", "detections")]
    return [f"{name:<18}{value}" for name, value in rows]
