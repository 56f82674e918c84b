"""The stream of training batches: the same with any number of workers, and entered at any place."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils.env import seed_all_rng

from eql_d2.data.random_state import random_state, same_random_state_afterwards, set_random_state
from eql_d2.data.samplers import ClassAwareSampler
from eql_d2.data.stream import IndexBatches, TrainLoader
from eql_d2.errors import InputError

RECORDS = [{"image": i, "width": 3 + i % 3, "height": 4} for i in range(10)]
SAMPLERS = {
    "shuffled": lambda: TrainingSampler(10, seed=3),
    "repeat factors": lambda: RepeatFactorTrainingSampler(torch.linspace(0.5, 2.3, 10), seed=3),
    "class-aware": lambda: ClassAwareSampler(np.arange(20) % 10, np.arange(20) % 4, seed=3),
}


def augmented(record):
    """An image's number with a draw of each generator."""
    return record["image"], random.random(), float(np.random.rand()), float(torch.rand(()))


def make_loader(sampler="shuffled", workers=0, grouped=False):
    seed_all_rng(5)
    batches = IndexBatches(SAMPLERS[sampler](), 2, RECORDS if grouped else None)
    return TrainLoader(RECORDS, augmented, batches, workers, seed=3)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was_stopped(sampler, workers, grouped):
    whole = take(make_loader(sampler, workers, grouped), 12)
    for place in (1, 5):
        stopped = make_loader(sampler, workers, grouped)
        assert take(stopped, place) == whole[:place]
        state, own = stopped.state_dict(), random_state()
        resumed = make_loader(sampler, workers, grouped)
        resumed.seek(place)
        resumed.load_state_dict(state)
        set_random_state(own)
        # And once more, after fewer batches than there are workers.
        assert take(resumed, 1) == whole[place : place + 1]
        own = random_state()
        again = make_loader(sampler, workers, grouped)
        again.seek(place + 1)
        again.load_state_dict(resumed.state_dict())
        set_random_state(own)
        assert take(again, 11 - place) == whole[place + 1 :]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_images_are_the_same_with_any_number_of_workers(sampler):
    images = [[[image for image, *_ in batch] for batch in take(make_loader(sampler, workers), 8)]
              for workers in (0, 1, 3)]  # fmt: skip
    assert images[0] == images[1] == images[2]
    assert list(itertools.chain(*images[0])) == list(itertools.islice(SAMPLERS[sampler](), 16))


def test_grouped_batches_are_those_of_detectron2():
    """AspectRatioGroupedDataset groups what was loaded, this what is to be loaded."""
    from detectron2.data.common import AspectRatioGroupedDataset

    stream = (RECORDS[index] for index in SAMPLERS["shuffled"]())
    expected = list(itertools.islice(iter(AspectRatioGroupedDataset(stream, 2)), 10))
    found = [
        [RECORDS[index] for index in batch] for batch in take(IndexBatches(SAMPLERS["shuffled"](), 2, RECORDS), 10)
    ]
    assert found == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_detectron2_s_loader(workers):
    """What was trained before streams had a position is trained again, to the bit."""
    from detectron2.data import build_detection_train_loader

    seed_all_rng(5)
    loader = build_detection_train_loader(
        RECORDS, mapper=augmented, sampler=SAMPLERS["shuffled"](), total_batch_size=2, aspect_ratio_grouping=False,
        num_workers=workers, seed=3,
    )  # fmt: skip
    assert take(loader, 8) == take(make_loader(workers=workers), 8)


def test_another_number_of_workers_draws_other_numbers():
    first = make_loader(workers=2)
    take(first, 4)
    resumed = make_loader(workers=1)
    resumed.seek(4)
    resumed.load_state_dict(first.state_dict())
    later, whole = take(resumed, 4), take(make_loader(workers=1), 8)
    assert [[image for image, *_ in batch] for batch in later] == [[image for image, *_ in b] for b in whole[4:]]
    draws = {draw for batch in later for _, draw, *_ in batch}
    assert not draws & {draw for batch in whole for _, draw, *_ in batch}


def test_random_state_of_every_generator():
    seed_all_rng(1)
    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    state = random_state()

    def draws():
        return random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.randn(3).sum())

    with same_random_state_afterwards():
        first = draws()
    assert draws() == first
    set_random_state(state)
    assert draws() == first


def test_ranks_that_cannot_share_a_batch(monkeypatch):
    from eql_d2.data.stream import images_per_process

    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(InputError, match="IMS_PER_BATCH is 4; it must be a multiple of 3"):
        images_per_process(4)
