"""Calibrations and tau-normalisation in the box predictor: other scores at test time, nothing else in training."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import LogitStatistics
from eql_d2.modeling.build import statistics_file
from eql_d2.modeling.classifier_layer import classifier_layers
from tests.conftest import NUM_CLASSES, tiny_config
from tests.modeling.test_heads import example

CASCADE = "Cascade-Mask-R-CNN-FPN"


def predictor_of(folder, *opts, loss="SOFTMAX"):
    """Return a tiny model's predictor in evaluation mode, the same weights whatever ``opts`` says."""
    cfg = tiny_config(folder, "Mask-R-CNN-FPN", loss, *opts)
    predictor = build_model(cfg).eval().roi_heads.box_predictor
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in predictor.cls_score.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return predictor


def write_statistics(path, num_logits=NUM_CLASSES + 1, seed=0):
    statistics = LogitStatistics(num_logits)
    generator = torch.Generator().manual_seed(seed)
    statistics.update(torch.randn(50, num_logits, generator=generator) * 3 + torch.arange(num_logits))
    statistics.save(path)
    return statistics


def calibration(name, *opts):
    return ["MODEL.LONG_TAIL.CALIBRATION.NAME", name, *opts]


def statistics_key(path):
    return ["MODEL.LONG_TAIL.CALIBRATION.LOGN.STATISTICS", str(path)]


FEATURES = torch.rand(7, 32, generator=torch.Generator().manual_seed(3))


def proposals(*sizes):
    ret = []
    for size in sizes:
        instances = Instances((64, 64))
        instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]]).repeat(size, 1))
        ret.append(instances)
    return ret


@torch.no_grad()
def scores_of(predictor):
    parts = predictor.predict_probs(predictor(FEATURES), proposals(3, 0, 4))
    assert [len(part) for part in parts] == [3, 0, 4]
    return torch.cat(parts)


def test_norcal(lvis_folder):
    """(s_j / n_j^gamma) / (sum_k s_k / n_k^gamma + s_background), n_j the images of class j."""
    plain = scores_of(predictor_of(lvis_folder))
    gamma = ["MODEL.LONG_TAIL.CALIBRATION.NORCAL.GAMMA", 0.7]
    actual = scores_of(predictor_of(lvis_folder, *calibration("NORCAL", *gamma)))
    counts = CategoryFrequency.from_json(lvis_folder / "frequency.json").image_count
    for row, expected in zip(actual, plain):
        expected = expected * torch.tensor([*(float(n) ** -0.7 for n in counts), 1.0])
        torch.testing.assert_close(row, expected / expected.sum())
    assert (actual - plain).abs().max() > 0.05


def test_logn(lvis_folder):
    """softmax of (z_j - mean_j + min_k mean_k) / std_j, background as it is."""
    statistics = write_statistics(lvis_folder / "statistics.pth")
    predictor = predictor_of(lvis_folder, *calibration("LOGN", *statistics_key(lvis_folder / "statistics.pth")))
    logits = predictor(FEATURES)[0].detach().double()
    mean, std = statistics.mean[:NUM_CLASSES], statistics.std[:NUM_CLASSES]
    foreground = (logits[:, :NUM_CLASSES] - mean + mean.min()) / std
    expected = torch.softmax(torch.cat([foreground, logits[:, NUM_CLASSES:]], dim=1), dim=1)
    torch.testing.assert_close(scores_of(predictor).double(), expected, rtol=1e-5, atol=1e-7)
    assert (expected - scores_of(predictor_of(lvis_folder))).abs().max() > 0.05


@pytest.mark.parametrize("loss", ["SOFTMAX", "EQL"])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_tau_normalisation(lvis_folder, loss, tau):
    """Logits are (x . w_j) / |w_j|^tau without the bias; background, where it has a column, keeps its own."""
    predictor = predictor_of(lvis_folder, "MODEL.LONG_TAIL.TAU_NORM.TAU", tau, loss=loss)
    weight, bias = predictor.cls_score.weight, predictor.cls_score.bias
    expected = torch.stack([FEATURES @ w / w.norm() ** tau for w in weight[:NUM_CLASSES]], dim=1)
    if loss == "SOFTMAX":
        expected = torch.cat([expected, (FEATURES @ weight[-1] + bias[-1]).unsqueeze(1)], dim=1)
    torch.testing.assert_close(predictor(FEATURES)[0], expected)
    torch.testing.assert_close(scores_of(predictor), predictor.classifier_loss.scores(expected).detach())
    predictor.train()
    torch.testing.assert_close(predictor(FEATURES)[0], FEATURES @ weight.T + bias)


def test_tau_comes_before_the_calibration(lvis_folder):
    tau = ["MODEL.LONG_TAIL.TAU_NORM.TAU", 0.5]
    both = predictor_of(lvis_folder, *tau, *calibration("NORCAL"))
    first = predictor_of(lvis_folder, *tau)
    logits = first(FEATURES)[0]
    torch.testing.assert_close(scores_of(both), both.calibration(first.classifier_loss, logits).detach())


def test_each_stage_of_a_cascade_has_its_statistics(lvis_folder):
    file = lvis_folder / "statistics.pth"
    written = [write_statistics(statistics_file(str(file), stage), seed=stage) for stage in range(3)]
    assert len(list(lvis_folder.glob("statistics*.pth"))) == 3
    cfg = tiny_config(lvis_folder, CASCADE, "SOFTMAX", *calibration("LOGN", *statistics_key(file)))
    model = build_model(cfg).eval()
    for (_, predictor), statistics in zip(classifier_layers(model), written):
        torch.testing.assert_close(predictor.calibration.mean, statistics.mean[:NUM_CLASSES].float())
    with torch.no_grad():
        assert len(model([example()])[0]["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", CASCADE])
def test_training_is_as_without(lvis_folder, architecture):
    for stage in range(3):
        write_statistics(statistics_file(str(lvis_folder / "statistics.pth"), stage))
    opts = [*calibration("LOGN", *statistics_key(lvis_folder / "statistics.pth")), "MODEL.LONG_TAIL.TAU_NORM.TAU", 0.5]
    plain = build_model(tiny_config(lvis_folder, architecture, "SOFTMAX")).train()
    calibrated = build_model(tiny_config(lvis_folder, architecture, "SOFTMAX", *opts)).train()
    calibrated.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, calibrated):
        torch.manual_seed(0)
        with EventStorage():
            losses = model([example(), example(classes=(1,), seed=1)])
        sum(losses.values()).backward()
        results.append((losses, [predictor.cls_score.weight.grad for _, predictor in classifier_layers(model)]))
    (losses, gradients), (other_losses, other_gradients) = results
    assert all(torch.equal(value, other_losses[name]) for name, value in losses.items())
    assert all(map(torch.equal, gradients, other_gradients)) and gradients[0].abs().sum() > 0


def test_the_statistics_are_those_of_the_config(lvis_folder):
    """A checkpoint that was saved with other statistics, or none, does not change them."""
    write_statistics(lvis_folder / "one.pth", seed=1)
    two = write_statistics(lvis_folder / "two.pth", seed=2)
    models = {
        name: build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *opts))
        for name, opts in {
            "none": [],
            "one": calibration("LOGN", *statistics_key(lvis_folder / "one.pth")),
            "two": calibration("LOGN", *statistics_key(lvis_folder / "two.pth")),
        }.items()
    }
    for name in ("none", "one"):
        models["two"].load_state_dict(models[name].state_dict())  # strict
        mean = models["two"].roi_heads.box_predictor.calibration.mean
        torch.testing.assert_close(mean, two.mean[:NUM_CLASSES].float())
    models["none"].load_state_dict(models["one"].state_dict())


def test_bad_input(lvis_folder):
    def error(*opts):
        with pytest.raises(InputError) as caught:
            predictor_of(lvis_folder, *calibration(*opts))
        return str(caught.value)

    assert "Did you mean 'LOGN'" in error("LOGM")
    assert "STATISTICS is empty" in error("LOGN")
    assert "absent.pth" in error("LOGN", *statistics_key(lvis_folder / "absent.pth"))
    write_statistics(lvis_folder / "three.pth", num_logits=3)
    assert "3 logits" in error("LOGN", *statistics_key(lvis_folder / "three.pth"))
    counts = [*statistics_key(""), "MODEL.ROI_HEADS.NUM_CLASSES", 7]
    assert "NUM_CLASSES is 7" in error("NORCAL", *counts)
