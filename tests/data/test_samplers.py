"""Class-aware sampling."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from detectron2.utils import comm

from eql_d2.data.samplers import ClassAwareSampler
from eql_d2.errors import InputError

# Class 0 in eight images, class 2 in two, class 5 in one; image 3 shows nothing.
IMAGES = np.array([0, 1, 1, 2, 2, 4, 5, 6, 7, 8, 8, 9])
LABELS = np.array([0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 5], np.int32)
# What was drawn with seed 0 before the sampler took arrays.
RECORDED = [9, 6, 8, 9, 2, 4, 1, 9, 2]


def draw(count, seed=0):
    return list(islice(ClassAwareSampler(IMAGES, LABELS, seed=seed), count))


def test_every_class_is_drawn_equally_often():
    # 240 rounds over three classes: class 5's one image in each, class 2's two images in half of them.
    drawn = Counter(draw(3 * 240))
    assert drawn[9] == 240
    assert 3 not in drawn, "an image without a class"
    only_class_0 = [drawn[image] for image in (0, 1, 4, 5, 6, 7)]
    assert only_class_0 == [30] * 6, "the images of a class take turns"
    assert drawn[2] == drawn[8] == 120 + 30


def test_same_seed_same_stream():
    assert draw(100, seed=4) == draw(100, seed=4) != draw(100, seed=5)
    assert draw(9) == RECORDED, "runs that were trained with an earlier version go on with the same images"


def test_order_is_shuffled():
    stream = draw(300)
    classes_of_rounds = {tuple("a" if image == 9 else "b" for image in stream[i : i + 3]) for i in range(0, 300, 3)}
    assert len(classes_of_rounds) == 3, "class 5 comes first, second and third"


def test_ranks_share_one_stream(monkeypatch):
    whole = draw(60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert draw(20) == whole[rank::3]


def test_nothing_to_draw():
    with pytest.raises(InputError, match="no image of the training set has a class"):
        ClassAwareSampler(np.empty(0, int), np.empty(0, int), seed=0)
