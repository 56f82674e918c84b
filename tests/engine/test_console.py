"""What a run says on the console: little, and nothing twice."""

import io
import logging
import sys

import pytest
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine import console
from tests.conftest import tiny_config


def record(message, level=logging.INFO, name="detectron2.some"):
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


def test_a_long_message_is_one_line_and_a_stack_is_whole():
    formatter = console.ShortFormatter(logging.Formatter("* %(message)s"))
    short, long = "\n".join("abc"), "\n".join(["Model:", *["layer"] * 30])
    assert formatter.format(record(short)) == f"* {short}"
    assert formatter.format(record(long)) == "* Model: (30 lines, in log.txt)"
    assert formatter.format(record(long, logging.ERROR)) == f"* {long}"


def test_a_warning_is_said_once(monkeypatch):
    seen = console.ConsoleFilter()
    assert seen.filter(record("w", logging.WARNING)) and not seen.filter(record("w", logging.WARNING))
    assert seen.filter(record("v", logging.WARNING)) and seen.filter(record("i")) and seen.filter(record("i"))
    losses = record("loss: 1", name="detectron2.utils.events")
    assert seen.filter(losses)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert not seen.filter(losses)


def test_the_bar_counts_iterations_and_shows_the_loss():
    stream = io.StringIO()
    bar = console.ProgressBar(stream)
    bar.trainer = type("Trainer", (), {"start_iter": 2, "max_iter": 42, "iter": 2})()
    with EventStorage(2) as bar.trainer.storage:
        bar.before_train()
        for bar.trainer.iter in range(2, 42):
            bar.trainer.storage.iter = bar.trainer.iter
            bar.trainer.storage.put_scalar("total_loss", 7.0 / bar.trainer.iter)
            bar.after_step()
        bar.after_train()
    assert "42/42" in stream.getvalue() and "loss=0.175" in stream.getvalue() and " 2/42" in stream.getvalue()


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_settings_fit_on_a_screen(lvis_folder, sampler):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "DATALOADER.SAMPLER_TRAIN", sampler)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.0123456
    frequency = CategoryFrequency.from_counts([150, 120, 50, 5, 1], num_images=200)
    lines = console.settings_that_matter(cfg, nn.Linear(1000, 1000), frequency)
    text = "\n".join(lines)
    assert len(lines) <= 20 and all(len(line) < 160 for line in lines)
    assert "5: 2 rare, 1 common, 2 frequent" in text and "1.0 M parameters trained" in text and "scratch" in text
    assert "4 of 2 images, 0.0 times the training set" in text and cfg.OUTPUT_DIR in text
    assert "starts from       iteration 7" in console.settings_that_matter(cfg, nn.Linear(1, 1), frequency, 7)
    assert ("threshold 0.01235" in text) == (sampler == "RepeatFactorTrainingSampler")


def test_the_console_is_short_and_the_file_is_not(tmp_path, capsys, monkeypatch):
    """Set up twice, as Detectron2 does it once more; afterwards the logger is as it was."""
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logging.getLogger("fvcore"), "handlers", [])
    console.setup_console(str(tmp_path))
    handlers = list(logger.handlers)
    console.setup_logger(str(tmp_path), distributed_rank=0)
    assert logger.handlers == handlers and len(handlers) == 2
    for _ in range(2):
        logger.warning("Beware.")
    logger.info("Model:\n" + "layer\n" * 30)
    printed, file = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert printed.count("Beware.") == 1 and "layer" not in printed and "(30 lines, in log.txt)" in printed
    assert file.count("Beware.") == 2 and file.count("layer") == 30
