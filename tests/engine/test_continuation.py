"""A training that is killed and resumed ends, to the bit, where it would have ended."""

import itertools

import pytest
from detectron2.data.samplers import TrainingSampler

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.continuation import Continuation
from eql_d2.engine.trainer import Trainer
from eql_d2.run_folder import RunFolder
from tests.engine.kills import CASES, configured, differences, outcome, run_to_the_end, write_dataset


@pytest.fixture
def wide_and_high(lvis_folder):
    write_dataset(lvis_folder, 12)
    return lvis_folder


@pytest.mark.parametrize("case", CASES)
def test_kills_change_nothing(wide_and_high, case):
    world_size, opts = CASES[case]
    whole = configured(wide_and_high, "whole", *opts)
    run_to_the_end(whole, wide_and_high, world_size, kills=0)
    killed = configured(wide_and_high, "killed", *opts)
    at = run_to_the_end(killed, wide_and_high, world_size, kills=1, seed=7)
    assert len(at) == 1
    expected, found = outcome(whole), outcome(killed)
    assert not differences(expected, found)
    assert len(expected["history"]) >= 1 and "momentum_buffer" in str(expected["checkpoint"]["trainer"]["_trainer"])
    assert not list(RunFolder(killed.OUTPUT_DIR).folder.glob("*.tmp*"))


def test_another_number_of_processes_goes_on_with_the_images_that_come_next(wide_and_high, warned):
    """Stopped on two processes with batches of 2, resumed on one with batches of 4: at image 12 of the stream."""
    opts = ["SOLVER.MAX_ITER", 6, "DATASETS.TEST", (), "DATALOADER.ASPECT_RATIO_GROUPING", False]
    run_to_the_end(configured(wide_and_high, "output", *opts), wide_and_high, 1, kills=0)
    cfg = configured(wide_and_high, "output", *opts, "SOLVER.MAX_ITER", 8, "SOLVER.IMS_PER_BATCH", 4)
    register_from_config(cfg)
    drawn = list(itertools.islice(TrainingSampler(12, seed=1), 20))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    seen = []
    trainer.model.register_forward_pre_hook(lambda model, args: seen.append([x["image_id"] - 1 for x in args[0]]))
    stopped_on_two = trainer._hooks[[isinstance(hook, Continuation) for hook in trainer._hooks].index(True)]
    stopped_on_two._loaded["processes"] *= 2
    trainer.train()
    assert seen == [drawn[12:16], drawn[16:]]
    assert [message.split(":")[0] for message in warned] == [
        "The checkpoint holds the random state of 2 processes, this run has 1",
        "The checkpoint is of batches of 2 images, this run has 4",
    ]
