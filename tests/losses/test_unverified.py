"""``MODEL.LONG_TAIL.UNVERIFIED``: no negative gradient for classes that an image does not verify."""

import pytest
import torch

from eql_d2.config import get_cfg
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY
from eql_d2.modeling.build import build_classifier_loss_from_config, build_foreground_loss_from_config
from eql_d2.modeling.classifier import LongTailClassifier
from tests.losses.helpers import make_loss, random_labels, random_logits, step

NAMES = sorted(name for name, _ in CLASSIFIER_LOSS_REGISTRY)
K = 9


def can_spare(name):
    return make_loss(name, num_classes=K).has_independent_columns


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    verified = torch.rand(24, K, generator=generator) < 0.4
    return random_logits(24, K).to(dtype), random_labels(24, K), verified


@pytest.mark.parametrize("name", filter(can_spare, NAMES))
def test_an_unverified_class_gets_no_gradient_and_counts_for_nothing(name):
    logits, labels, verified = batch()
    loss = make_loss(name, num_classes=K)
    loss.spare_unverified()
    value, gradient = step(loss, logits, labels, verified)
    is_target = torch.nn.functional.one_hot(labels, K + 1)[:, :K].bool()
    assert (gradient[~verified & ~is_target] == 0).all()
    assert (gradient[is_target] != 0).all()
    # Whatever an unverified class is taken for, nothing else changes.
    other = make_loss(name, num_classes=K)
    other.spare_unverified()
    changed = torch.where(verified | is_target, logits, logits + 3)
    other_value, other_gradient = step(other, changed, labels, verified)
    assert other_value == value and torch.equal(other_gradient, gradient)


@pytest.mark.parametrize("name", filter(can_spare, NAMES))
def test_where_all_is_verified_it_is_the_loss_itself(name):
    logits, labels, verified = batch()
    verified = torch.ones_like(verified)
    plain, sparing = make_loss(name, num_classes=K), make_loss(name, num_classes=K)
    sparing.spare_unverified()
    for _ in range(2):  # with what it sums up over steps
        for mine, other in zip(step(plain, logits, labels, verified), step(sparing, logits, labels, verified)):
            assert torch.equal(mine, other)
    value, gradient = step(sparing, logits, labels, None)  # a batch that says nothing spares nothing
    assert torch.equal(value, step(plain, logits, labels, None)[0]) and (gradient != 0).any()


def test_sigmoid_against_loops():
    logits, labels, verified = batch()
    loss = make_loss("SIGMOID", num_classes=K)
    loss.spare_unverified()
    total = 0.0
    for r, label in enumerate(labels.tolist()):
        for j in range(K):
            z = logits[r, j]
            if j == label:
                total += torch.log1p(torch.exp(-z))
            elif verified[r, j]:
                total += torch.log1p(torch.exp(z))
    torch.testing.assert_close(step(loss, logits, labels, verified)[0], total / len(labels))


def test_eql_keeps_its_rule_where_a_class_is_verified():
    """w = 1 for verified classes (section 4.2); with the exemption of the loss turned off, its tail rule."""
    logits, labels, verified = batch()
    for exemption in (True, False):
        plain = make_loss("EQL", num_classes=K, image_level_exemption=exemption)
        sparing = make_loss("EQL", num_classes=K, image_level_exemption=exemption)
        sparing.spare_unverified()
        _, expected = step(plain, logits, labels, verified)
        _, gradient = step(sparing, logits, labels, verified)
        is_target = torch.nn.functional.one_hot(labels, K + 1)[:, :K].bool()
        counted = verified | is_target
        torch.testing.assert_close(gradient, expected * counted)


def test_ignored_regions_and_half_precision():
    logits, labels, verified = batch(torch.float32)
    loss = make_loss("SIGMOID", num_classes=K)
    loss.spare_unverified()
    with_ignored = labels.clone()
    with_ignored[::3] = -1
    kept = with_ignored >= 0
    expected, _ = step(loss, logits[kept], labels[kept], verified[kept])
    value = loss(logits, with_ignored, verified, has_ignored=True)
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(loss(logits.half(), labels, verified))
    empty = loss(logits[:0], labels[:0], verified[:0])
    assert empty == 0


@pytest.mark.parametrize("name", [name for name in NAMES if not can_spare(name)])
def test_a_loss_with_a_background_is_refused(name):
    with pytest.raises(InputError, match=f"LOSS {name} has a softmax or a column for background"):
        make_loss(name, num_classes=K).spare_unverified()


def test_the_key():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
    cfg.MODEL.LONG_TAIL.LOSS = "SIGMOID"
    assert not build_classifier_loss_from_config(cfg).spares_unverified
    cfg.MODEL.LONG_TAIL.UNVERIFIED = "exempt"
    loss = build_classifier_loss_from_config(cfg)
    assert loss.spares_unverified and loss.uses_verified
    assert build_foreground_loss_from_config(cfg, "a pixel").spares_unverified
    with pytest.raises(InputError, match="an image that is classified has its class and says nothing of others"):
        LongTailClassifier.from_config(cfg)
    cfg.MODEL.LONG_TAIL.LOSS = "SOFTMAX"
    with pytest.raises(InputError, match="UNVERIFIED is 'exempt', but LOSS SOFTMAX"):
        build_classifier_loss_from_config(cfg)
    cfg.MODEL.LONG_TAIL.UNVERIFIED = "ignore"
    with pytest.raises(InputError, match="there are 'loss' and 'exempt'"):
        build_classifier_loss_from_config(cfg)
