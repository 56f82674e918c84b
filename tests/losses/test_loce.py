"""LOCE: golden vectors of the authors' code, objects with several regions, and bad settings."""

import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.losses import EquilibriumLoss
from tests.losses.helpers import assert_golden, golden, make_loss, random_labels, random_logits


def test_golden_over_five_steps():
    """The last rows are from the memory: those of one class are one observation."""
    arrays = golden("loce")
    loss = EquilibriumLoss(80, float(arrays["alpha"]), float(arrays["initial_score"]), float(arrays["bg_score"]))
    for i in range(5):
        logits, labels, objects = (torch.from_numpy(arrays[key][i]) for key in ("logits", "gt_classes", "instance"))
        from_memory = (torch.arange(len(labels)) >= len(labels) - int(arrays["memory_rows"])) & (labels < 80)
        key = torch.where(from_memory, 1000 + labels, torch.where(objects < 0, 2000, objects))
        objects = (key.unsqueeze(1) == key).int().argmax(1)
        logits.requires_grad_()
        value = loss(logits, labels.long(), objects=objects)
        value.backward()
        assert_golden(value, arrays["loss"][i])
        assert_golden(logits.grad, arrays["grad"][i])
        assert_golden(loss.mean_score, arrays["mean_score"][i][:80])
        assert arrays["mean_score"][i][80] == pytest.approx(loss.background_score)
    assert_golden(loss.scores(logits), arrays["last_probs"])


def test_the_regions_of_an_object_are_one_observation():
    logits = torch.zeros(3, 10, dtype=torch.float64)
    logits[:, 4] = torch.tensor([0.0, 1.0, 2.0])
    loss = make_loss("LOCE")
    loss(logits, torch.tensor([4, 4, 9]), objects=torch.tensor([0, 0, 2]))
    mean = torch.softmax(logits, 1)[:2, 4].mean()
    assert loss.mean_score[4] == pytest.approx(0.9 * 0.01 + 0.1 * float(mean))
    assert (loss.mean_score[:4] == 0.01).all() and (loss.mean_score[5:] == 0.01).all()


def test_ignored_regions_leave_the_others_objects():
    logits, labels, objects = random_logits(20, 10), random_labels(20, 9), torch.arange(20) // 3 * 3
    labels[::4] = -1
    loss, other = make_loss("LOCE"), make_loss("LOCE")
    loss(logits, labels, has_ignored=True, objects=objects)
    kept = labels >= 0
    key = objects[kept]
    other(logits[kept], labels[kept], objects=(key.unsqueeze(1) == key).int().argmax(1))
    torch.testing.assert_close(loss.mean_score, other.mean_score)


def test_memory_wants_the_classes_with_a_low_score():
    loss = make_loss("LOCE")
    loss.mean_score[2] = 0.5
    weight = loss.class_demand()
    assert weight.argmin() == 2 and weight[0] / weight[2] == pytest.approx(50, rel=1e-4)


@pytest.mark.parametrize(
    "settings, word",
    [({"alpha": 1.0}, "ALPHA is 1.0"), ({"initial_score": 0.0}, "above 0"), ({"background_score": -1.0}, "above 0")],
)
def test_bad_settings(settings, word):
    with pytest.raises(InputError, match=word):
        make_loss("LOCE", **settings)
