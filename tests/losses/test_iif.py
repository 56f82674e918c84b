"""IIF."""

import pytest
import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import InverseImageFrequencyLoss
from eql_d2.losses.iif import VARIANTS
from tests.losses.helpers import assert_golden, golden, golden_frequency, long_tailed_frequency, make_loss, step


@pytest.mark.parametrize("variant", ["raw", "base10", "smooth"])
def test_golden(variant):
    arrays = golden("iif")
    loss = InverseImageFrequencyLoss(golden_frequency(arrays), variant=variant)
    assert_golden(loss.factor, arrays[f"{variant}_class_factor"])
    logits = torch.from_numpy(arrays["logits"])
    value, gradient = step(loss, logits, torch.from_numpy(arrays["gt_classes"]))
    assert_golden(value, arrays[f"{variant}_loss"])
    assert_golden(gradient, arrays[f"{variant}_grad"])
    assert_golden(loss.scores(logits), arrays[f"{variant}_probs"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", ["images", "instances"])
def test_rarer_classes_have_larger_factors(variant, counts):
    factor = make_loss("IIF", variant=variant, counts=counts).factor
    assert (factor[1:-1] > factor[:-2]).all() and factor[-1] == 1


def test_instances_are_shares_of_all_instances():
    frequency = long_tailed_frequency()
    counts = frequency.instance_count.double()
    expected = torch.log(counts.sum() / counts)
    torch.testing.assert_close(make_loss("IIF", counts="instances").factor[:-1], expected)


def test_a_class_without_images_counts_as_one():
    factor = InverseImageFrequencyLoss(CategoryFrequency.from_counts([50, 1, 0], num_images=60)).factor
    assert factor[1] == factor[2] and torch.isfinite(factor).all()


def test_a_class_in_every_image_is_named_where_the_factor_has_no_limit():
    frequency = CategoryFrequency.from_counts([3, 9], num_images=9)
    with pytest.raises(InputError, match="label 1"):
        InverseImageFrequencyLoss(frequency, variant="prob")
    assert InverseImageFrequencyLoss(frequency).factor[1] == 0


@pytest.mark.parametrize("settings, word", [({"variant": "base3"}, "VARIANT"), ({"counts": "boxes"}, "COUNTS")])
def test_bad_settings(settings, word):
    with pytest.raises(InputError, match=word):
        make_loss("IIF", **settings)
