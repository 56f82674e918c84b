"""LDAM and its deferred re-weighting."""

import copy

import pytest
import torch
import torch.nn.functional as F

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import LabelDistributionAwareMarginLoss
from tests.losses.helpers import assert_equals_slow, make_loss, random_labels, random_logits, step

COUNTS = [625, 16, 1]


def released(logits, labels, weight=None, max_margin=0.5, scale=30.0):
    """The authors' few lines, in PyTorch: margins of the counts, then a weighted cross-entropy."""
    margin = torch.tensor(COUNTS, dtype=torch.float64) ** -0.25
    margin = margin * (max_margin / margin.max())
    shifted = logits - margin[labels].unsqueeze(1) * F.one_hot(labels, len(COUNTS))
    return F.cross_entropy(scale * shifted, labels, weight)


@pytest.mark.parametrize("reweighted", [False, True])
def test_equals_pytorch_cross_entropy(reweighted):
    frequency = CategoryFrequency.from_counts(COUNTS, num_images=sum(COUNTS))
    loss = LabelDistributionAwareMarginLoss(frequency, reweight_after=0 if reweighted else -1, background=False)
    torch.testing.assert_close(loss.margin[:3], torch.tensor([0.1, 0.25, 0.5]))
    logits, labels = random_logits(12, 3).tanh(), random_labels(12, 3, background=0)
    effective = (1 - 0.9999 ** torch.tensor(COUNTS, dtype=torch.float64)) / (1 - 0.9999)
    weight = (1 / effective) / (1 / effective).sum() * 3 if reweighted else None
    value, gradient = step(loss, logits, labels)
    leaf = logits.clone().requires_grad_()
    expected = released(leaf, labels, weight)
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.scores(logits)[:, :3], (30 * logits).softmax(1))


def test_weights_start_after_the_given_steps():
    assert_equals_slow(make_loss("LDAM", reweight_after=2), num_steps=4)
    loss, plain = make_loss("LDAM", reweight_after=2), make_loss("LDAM")
    logits, labels = random_logits(20, loss.num_logits), random_labels(20, loss.num_classes)
    same = [bool(step(loss, logits, labels)[0] == step(plain, logits, labels)[0]) for _ in range(4)]
    assert same == [True, True, False, False]


def test_evaluation_takes_no_step_and_a_resumed_run_goes_on():
    loss = make_loss("LDAM", reweight_after=1)
    logits, labels = random_logits(20, loss.num_logits), random_labels(20, loss.num_classes)
    loss.eval()
    loss(logits, labels)
    assert loss.num_steps == 0
    loss.train()
    loss(logits, labels)
    resumed = make_loss("LDAM", reweight_after=1)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert resumed(logits, labels) == loss(logits, labels) != make_loss("LDAM", reweight_after=1)(logits, labels)


@pytest.mark.parametrize(
    "settings, word", [({"beta": 1.0}, "BETA"), ({"scale": 0}, "SCALE"), ({"max_margin": -1}, "MARGIN")]
)
def test_bad_settings(settings, word):
    with pytest.raises(InputError, match=word):
        make_loss("LDAM", **settings)
