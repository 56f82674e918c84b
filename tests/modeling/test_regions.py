"""Gradient norms, probabilities and ratios against a slow autograd computation and the losses' own sums."""

import copy

import pytest
import torch

from eql_d2.losses import SigmoidLoss
from eql_d2.modeling.regions import RegionStatistics, Watcher, predicted_classes, total_gradient
from tests.analysis.helpers import Classifier, regions
from tests.losses.helpers import LOSS_NAMES, NUM_CLASSES, make_loss


def slow_means(classifier, features, gt_classes, verified):
    """Give each region a copy of the weights of its own: the gradient of a copy is what that region contributes."""
    copies = [classifier.cls_score.weight.detach().clone().requires_grad_() for _ in features]
    logits = torch.stack([w @ x + classifier.cls_score.bias.detach() for w, x in zip(copies, features)])
    if classifier.cls_scale is not None:
        logits = logits * classifier.cls_scale.detach()
    loss = classifier.classifier_loss(logits, gt_classes, verified)
    (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
    scores = classifier.classifier_loss.scores(logits.detach())
    num_regions = len(features)
    result = {"positive_gradient_norm": [], "negative_gradient_norm": [], "mean_probability": []}
    for j in range(NUM_CLASSES):
        norms = [num_regions * float((w.grad[j] ** 2).sum() ** 0.5) for w in copies]
        own = [r for r in range(num_regions) if gt_classes[r] == j]
        other = [r for r in range(num_regions) if gt_classes[r] != j]
        for name, chosen in (("positive", own), ("negative", other)):
            mean = sum(norms[r] for r in chosen) / len(chosen) if chosen else float("nan")
            result[f"{name}_gradient_norm"].append(mean)
        probability = sum(float(scores[r, j]) for r in own) / len(own) if own else float("nan")
        result["mean_probability"].append(probability)
    return result


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_norms_are_those_of_slow_autograd(name, scale):
    classifier = Classifier(make_loss(name).double().train(), scale)
    batch = regions(3, NUM_CLASSES)
    expected = slow_means(copy.deepcopy(classifier), *batch)
    watcher = Watcher([classifier])
    with watcher.attached():
        classifier(*batch)
    means = watcher.statistics[0].means()
    for key, values in expected.items():
        torch.testing.assert_close(means[key], torch.tensor(values).double(), equal_nan=True, rtol=1e-5, atol=1e-9)
    assert means["positive_gradient_norm"].nan_to_num().sum() > 0


def test_numbers_by_hand():
    """Two classes, probabilities 1/2 everywhere, |x| = 5 and 10: sigmoid's gradients are p - 1 and p (equation 5)."""
    classifier = Classifier(SigmoidLoss(2))
    torch.nn.init.zeros_(classifier.cls_score.weight)
    torch.nn.init.zeros_(classifier.cls_score.bias)
    features = torch.zeros(3, 6, dtype=torch.float64)
    features[0, :2] = torch.tensor([3.0, 4.0])
    features[1:, 0] = 10
    watcher = Watcher([classifier])
    with watcher.attached():
        classifier(features, torch.tensor([0, 2, 0]))
    statistics = watcher.statistics[0]
    means = statistics.means()
    assert statistics["positives"].tolist() == [2, 0] and statistics.negatives.tolist() == [1, 3]
    assert means["positive_gradient_norm"].tolist()[0] == 3.75 and means["positive_gradient_norm"][1].isnan()
    torch.testing.assert_close(means["negative_gradient_norm"], torch.tensor([5.0, 25 / 6]).double())
    assert means["mean_probability"][0] == 0.5
    assert means["gradient_ratio"].tolist() == [2.0, 0.0]


def test_means_are_over_all_regions_of_all_steps():
    classifier = Classifier(make_loss("SIGMOID").double())
    watcher, one = Watcher([classifier]), Watcher([classifier])
    batches = [regions(seed, NUM_CLASSES) for seed in range(3)]
    with watcher.attached():
        for batch in batches:
            classifier(*batch)
    with one.attached():
        classifier(*(torch.cat(parts) for parts in zip(*batches)))
    for name, mean in watcher.statistics[0].means().items():
        torch.testing.assert_close(mean, one.statistics[0].means()[name], equal_nan=True)


def test_ratio_is_what_eql_v2_accumulates():
    classifier = Classifier(make_loss("EQL_V2").double().train())
    watcher = Watcher([classifier])
    with watcher.attached():
        for seed in range(4):
            classifier(*regions(seed, NUM_CLASSES, 29))
    loss, statistics = classifier.classifier_loss, watcher.statistics[0]
    torch.testing.assert_close(statistics["positive_gradient"], loss.pos_grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics["negative_gradient"], loss.neg_grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.means()["gradient_ratio"], loss.gradient_ratio(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_frozen_watching_leaves_the_loss_as_it_was(name):
    classifier = Classifier(make_loss(name).double().train())
    classifier(*regions(1, NUM_CLASSES))  # a state that is not the first one
    classifier.classifier_loss.eval()
    before = copy.deepcopy(classifier.classifier_loss.state_dict())
    watcher = Watcher([classifier], frozen=True)
    with torch.no_grad(), watcher.attached():
        classifier(*regions(2, NUM_CLASSES))
        first = watcher.statistics[0].sums.clone()
        classifier(*regions(2, NUM_CLASSES))
    after = classifier.classifier_loss.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = watcher.statistics[0].sums - first
    # The sums of a loss stand still, so the same step gives the same numbers; random draws go on.
    if "random_step" not in before:
        torch.testing.assert_close(again, first)
    assert first.sum() > 0


def test_random_draws_go_on():
    """Dropping from one draw to the next: the same regions, other gradients."""
    classifier = Classifier(make_loss("SEQL", lambda_=0.5, gamma=0.5).double().train())
    watcher = Watcher([classifier], frozen=True)
    with torch.no_grad(), watcher.attached():
        batch = regions(2, NUM_CLASSES, 200)
        classifier(*batch)
        first = watcher.statistics[0]["negative_gradient"].clone()
        classifier(*batch)
    again = watcher.statistics[0]["negative_gradient"] - first
    assert not torch.allclose(again, first, rtol=1e-3)


def test_training_is_left_as_it_is():
    """Gradients and random draws of the loss that trains are the same with and without hooks."""
    gradients = []
    for watched in (False, True):
        classifier = Classifier(make_loss("DROPLOSS").double().train())
        watcher = Watcher([classifier], is_active=lambda watched=watched: watched)
        with watcher.attached():
            for seed in range(2):
                classifier(*regions(seed, NUM_CLASSES)).backward()
        gradients.append(classifier.cls_score.weight.grad)
        assert (watcher.statistics[0].num_regions > 0) == watched
    assert torch.equal(*gradients)


def test_evaluation_and_forward_passes_without_a_graph_are_not_counted():
    classifier = Classifier(make_loss("EQL").double())
    watcher = Watcher([classifier])
    with watcher.attached():
        with torch.no_grad():
            classifier(*regions(1, NUM_CLASSES))
        classifier.eval()
        classifier(*regions(1, NUM_CLASSES))
    assert watcher.statistics[0].num_regions == 0


def test_no_region_and_numbers_that_are_not_finite():
    statistics = RegionStatistics(2)
    statistics.update(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    statistics.update(torch.tensor([[torch.inf, 0]]), torch.ones(1), torch.ones(1, 3), torch.tensor([1]))
    assert statistics.num_regions == 0 and statistics.sums.sum() == 0
    assert statistics.means()["mean_probability"].isnan().all()


def test_half_precision_does_not_underflow():
    """1,024 regions with gradients of 1e-5: divided by R they are below what float16 can hold."""
    logits = torch.full((1024, 2), -11.5, dtype=torch.float16, requires_grad=True)
    loss = SigmoidLoss(2)
    gradient = total_gradient(loss(logits, torch.full((1024,), 2)), logits)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.full((1024, 2), 1.013e-5), rtol=1e-2, atol=0)


def test_predicted_class():
    scores = torch.tensor([[0.2, 0.5, 0.4], [0.2, 0.3, 0.4]])
    assert predicted_classes(scores).tolist() == [1, 2]
    # Without a background column: background where no class reaches one half.
    assert predicted_classes(torch.tensor([[0.2, 0.6, 0.0], [0.2, 0.4, 0.0]])).tolist() == [1, 2]


def test_confusion_counts_each_region_once():
    statistics = RegionStatistics(2, with_confusion=True)
    scores = torch.tensor([[0.6, 0.1, 0.3], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    statistics.update(torch.zeros(3, 3), torch.ones(3), scores, torch.tensor([0, 0, 2]))
    assert statistics.confusion.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert statistics.foreground_confusion.tolist() == [[1, 1], [0, 0]]
    statistics.update(torch.zeros(3, 3), torch.ones(3), scores, torch.tensor([0, 0, 2]))
    assert statistics.confusion.sum() == 6
