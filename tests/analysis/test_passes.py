"""A pass over a data set: the regions that training samples, and a model that stays as it was."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

from eql_d2.analysis.passes import collect_statistics, pass_over
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.build import build_train_loader
from eql_d2.data.builtin import register_from_config
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers
from tests.conftest import ARCHITECTURES, NUM_CLASSES, tiny_config
from tests.engine.test_protocol import trained_weights


def open_run(folder, weights, architecture="Mask-R-CNN-FPN", loss="SOFTMAX", *opts):
    cfg = tiny_config(folder, architecture, loss, "MODEL.WEIGHTS", str(weights), *opts)
    run = TrainedModel(folder, "run", weights.name)
    run.cfg = cfg
    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_regions_are_those_of_training(lvis_folder, architecture):
    weights = trained_weights(lvis_folder, architecture)
    run = open_run(lvis_folder, weights, architecture)
    result = pass_over(run)
    stages = 3 if architecture.startswith("Cascade") else 1
    assert len(result.statistics) == stages and result.num_images == 4
    first = result.statistics[0]
    # Four images with an instance of class 0 or 1; the ground truth box is itself a proposal, so it has a positive.
    assert first["positives"].nonzero().flatten().tolist() == [0, 1] and first["positives"].min() >= 0
    assert 4 <= first["positives"].sum() <= 4 * 32 and first.num_regions <= 4 * 32
    for statistics in result.statistics:
        confusion = statistics.confusion
        assert confusion.sum() == statistics.num_regions > 0
        assert torch.equal(confusion[:NUM_CLASSES].sum(1), statistics["positives"].long())
        assert torch.equal(statistics.foreground_confusion.sum(1), statistics["positives"].long())
        means = statistics.means()
        assert (means["mean_probability"][:2] > 0).all() and (means["positive_gradient_norm"][:2] > 0).all()


def test_the_same_pass_twice_gives_the_same_numbers(lvis_folder):
    run = open_run(lvis_folder, trained_weights(lvis_folder))
    first, second = (pass_over(run).statistics[0] for _ in range(2))
    assert torch.equal(first.sums, second.sums) and torch.equal(first.confusion, second.confusion)


def test_some_images(lvis_folder):
    run = open_run(lvis_folder, trained_weights(lvis_folder))
    assert pass_over(run, max_images=3).num_images == 2  # every second of four


@pytest.mark.parametrize("loss", ["EQL_V2", "SEQL"])
def test_the_model_stays_as_it_was(lvis_folder, loss):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", loss)
    register_from_config(cfg)
    model = Trainer.build_model(cfg).train()
    batch = next(iter(build_train_loader(cfg)))
    with EventStorage():
        model(batch)  # a batch norm and a loss that have seen something
    model.roi_heads.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    predictors = [predictor for _, predictor in classifier_layers(model)]
    collect_statistics(model, predictors, [batch, batch])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())


def test_errors_of_a_pass(lvis_folder):
    weights = trained_weights(lvis_folder)
    run = open_run(lvis_folder, weights)
    for call, words in (
        (lambda: pass_over(run, max_images=-1), "--max-images is -1"),
        (lambda: pass_over(run, "no_such_set"), "No data set is registered as 'no_such_set'"),
        (lambda: pass_over(open_run(lvis_folder, lvis_folder / "absent.pth")), r"absent.pth: .* name one by --weights"),
        (
            lambda: pass_over(open_run(lvis_folder, weights, "Mask-R-CNN-FPN", "SIGMOID")),
            "cls_score",
        ),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
