"""Seesaw loss."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.helpers import assert_equals_slow, make_loss, random_labels, random_logits, step


@pytest.mark.parametrize("settings", [{"p": 0.0}, {"q": 0.0}, {"eps": 0.3}])
def test_equals_slow_formula(settings):
    assert_equals_slow(make_loss("SEESAW", **settings), num_regions=30)


def test_without_factors_it_is_two_softmaxes():
    logits, labels = random_logits(20, 11), random_labels(20, 9)
    foreground = labels < 9
    expected = F.cross_entropy(logits[foreground, :9], labels[foreground], reduction="sum")
    expected = (expected + F.cross_entropy(logits[:, 9:], (~foreground).long(), reduction="sum")) / 20
    loss = make_loss("SEESAW", p=0.0, q=0.0)
    value, _ = step(loss, logits, labels)
    torch.testing.assert_close(value, expected)
    statistics = loss.statistics()
    torch.testing.assert_close(statistics["loss_classes"] + statistics["loss_objectness"], value)


def test_counts_of_regions():
    loss = make_loss("SEESAW")
    for _ in range(2):
        step(loss, torch.zeros(5, 11), torch.tensor([0, 0, 3, 9, 9]))
    assert loss.num_seen.tolist() == [4, 0, 0, 2, 0, 0, 0, 0, 0]
