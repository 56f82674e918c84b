"""Collecting logit statistics over a data set, and evaluating with them."""

import subprocess
import sys

import pytest
import torch

from eql_d2.engine import argument_parser
from eql_d2.engine import calibrate as calibrate_module
from eql_d2.engine import setup as setup_run
from eql_d2.engine.calibrate import calibrate, calibrate_parser
from eql_d2.engine.trainer import Trainer, run
from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers
from tests.conftest import NUM_CLASSES, ROOT, tiny_config
from tests.engine.test_protocol import trained_weights


def write_config(folder, architecture="Mask-R-CNN-FPN", *opts):
    path = folder / "config.yaml"
    path.write_text(tiny_config(folder, architecture, "SOFTMAX", *opts).dump())
    return str(path)


def collected(path, arguments=()):
    args = calibrate_parser().parse_args(["--config-file", path, *arguments])
    return calibrate(setup_run(args), args)


@torch.no_grad()
def all_logits(cfg, weights, every=1):
    """Return the logits of all regions of the data set, for each stage, computed image by image and kept."""
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(torch.load(weights)["model"])
    kept = []
    for _, predictor in classifier_layers(model):
        logits = []
        predictor.cls_score.register_forward_hook(lambda module, args, output, logits=logits: logits.append(output))
        kept.append(logits)
    for i, image in enumerate(Trainer.build_test_loader(cfg, cfg.DATASETS.TRAIN[0])):
        if i % every == 0:
            model(image)
    return [torch.cat(logits).double() for logits in kept]


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_statistics_are_those_of_all_regions(lvis_folder, architecture):
    weights = trained_weights(lvis_folder, architecture)
    # The config may be the one that is to be evaluated with the statistics that there are not yet.
    opts = ["MODEL.WEIGHTS", str(weights), "MODEL.LONG_TAIL.CALIBRATION.NAME", "LOGN"]
    path = write_config(lvis_folder, architecture, *opts)
    files = collected(path)
    stages = 3 if architecture.startswith("Cascade") else 1
    assert [file.name for file in files] == [f"logit_statistics{s}.pth" for s in ("", "_stage1", "_stage2")][:stages]
    logits = all_logits(tiny_config(lvis_folder, architecture, "SOFTMAX"), weights)
    for file, of_stage in zip(files, logits):
        content = torch.load(file)
        assert content["count"] == len(of_stage) > 100
        torch.testing.assert_close(content["mean"], of_stage.mean(0))
        torch.testing.assert_close(content["std"], of_stage.std(0, unbiased=False))


def test_some_images_and_another_file(lvis_folder):
    weights = trained_weights(lvis_folder)
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.WEIGHTS", str(weights), "DATASETS.TRAIN", ())
    name = f"{lvis_folder.name}_train"
    output = lvis_folder / "deep" / "two.pth"
    arguments = ["--max-images", "3", "--dataset", name, "--output", str(output)]
    assert collected(path, arguments) == [output]
    (logits,) = all_logits(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX"), weights, every=2)  # 2 of 4 images
    torch.testing.assert_close(torch.load(output)["mean"], logits.mean(0))


def test_scores_change_by_the_statistics(lvis_folder, monkeypatch):
    """Written by the one command, read by the other: --eval-only with LOGN gives other scores than without."""
    weights = trained_weights(lvis_folder)
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.WEIGHTS", str(weights))
    (file,) = collected(path)
    models = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model: models.append(model.eval()) or {}))
    key = "MODEL.LONG_TAIL.CALIBRATION"
    for opts in ([], [f"{key}.NAME", "LOGN", f"{key}.LOGN.STATISTICS", str(file)]):
        args = argument_parser().parse_args(["--config-file", path, "--eval-only", *opts])
        run(setup_run(args), args)
    image = next(iter(Trainer.build_test_loader(tiny_config(lvis_folder), f"{lvis_folder.name}_train")))
    with torch.no_grad():
        plain, calibrated = (model(image)[0]["instances"] for model in models)
    assert not torch.allclose(plain.scores, calibrated.scores, atol=1e-3)
    mean = models[1].roi_heads.box_predictor.calibration.mean
    torch.testing.assert_close(mean, torch.load(file)["mean"][:NUM_CLASSES].float())


def test_bad_input(lvis_folder):
    path = write_config(lvis_folder)
    for arguments, words in (
        ([], "Calibration needs weights: set MODEL.WEIGHTS"),
        (["--max-images", "-1"], "--max-images is -1"),
        (["DATASETS.TRAIN", "()"], "name a data set by --dataset"),
    ):
        with pytest.raises(InputError, match=words):
            collected(path, arguments)


def test_two_processes_count_each_region_once(lvis_folder):
    """The tool on two processes writes what one process writes."""
    weights = trained_weights(lvis_folder)
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.WEIGHTS", str(weights))
    (alone,) = collected(path, ["--output", str(lvis_folder / "alone.pth")])
    output = lvis_folder / "both.pth"
    command = [sys.executable, str(ROOT / "tools/calibrate.py"), "--config-file", path, "--output", str(output)]
    command += ["--num-gpus", "2", "--dist-url", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stdout
    one, two = torch.load(alone), torch.load(output)
    assert one.pop("regions") == two.pop("regions") == "test"
    assert all(torch.allclose(one[key], two[key], rtol=1e-4, atol=1e-6) for key in one)


TRAINING = ["MODEL.LONG_TAIL.CALIBRATION.LOGN.REGIONS", "training", "MODEL.LONG_TAIL.CALIBRATION.LOGN.MOMENTUM", 0.1]


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_running_statistics_of_training_regions(lvis_folder, architecture, monkeypatch):
    """One epoch of one image a step, in training mode: a batch norm layer's statistics of each stage's logits."""
    weights = trained_weights(lvis_folder, architecture)
    path = write_config(lvis_folder, architecture, "MODEL.WEIGHTS", str(weights), *TRAINING)
    models = []
    load = calibrate_module.load_trained_model

    def watched(*args):
        models.append(load(*args))
        models[0].seen = [[] for _ in classifier_layers(models[0])]
        for (_, predictor), logits in zip(classifier_layers(models[0]), models[0].seen):
            predictor.cls_score.register_forward_hook(lambda module, args, output, logits=logits: logits.append(output))
        return models[0]

    monkeypatch.setattr(calibrate_module, "load_trained_model", watched)
    files = collected(path)
    assert len(files) == len(models[0].seen) == (3 if architecture.startswith("Cascade") else 1)
    for file, steps in zip(files, models[0].seen):
        assert len(steps) == 4 and all(1 < len(logits) <= 33 for logits in steps)  # 32 sampled, not 1000 proposals
        norm = torch.nn.BatchNorm1d(NUM_CLASSES + 1, affine=False, momentum=0.1).double()
        for logits in steps:
            norm(logits.double())
        content = torch.load(file)
        assert content["regions"] == "training" and content["count"] == sum(map(len, steps))
        torch.testing.assert_close(content["mean"], norm.running_mean)
        torch.testing.assert_close(content["std"], norm.running_var.sqrt())
    saved = torch.load(weights)["model"]
    after = models[0].state_dict()
    assert all(torch.equal(after[name], saved[name]) for name in after), "nothing was trained"


def test_running_statistics_of_some_images(lvis_folder):
    weights = trained_weights(lvis_folder)
    rfs = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 1.125]
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.WEIGHTS", str(weights), *TRAINING, *rfs)
    counts = []
    for arguments in (["--max-images", "2"], []):  # of an epoch of 4 x 1.5 images
        (file,) = collected(path, arguments)
        counts.append(int(torch.load(file)["count"]))
    assert counts[0] <= 2 * 33 < counts[1] <= 6 * 33


def test_dimensions_of_boxes_need_no_weights(lvis_folder):
    """Written by the one command, read by the other, and other scores than without."""
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.LONG_TAIL.CALIBRATION.NAME", "FRACAL")
    (file,) = collected(path)
    assert file.name == "fractal_dimensions.pth"
    dimensions = torch.load(file)["fractal_dimension"]
    assert len(dimensions) == NUM_CLASSES and ((dimensions >= 1) & (dimensions <= 2)).all()
    statistics = ["MODEL.LONG_TAIL.CALIBRATION.FRACAL.STATISTICS", str(file)]
    cfg = tiny_config(lvis_folder, "Cascade-Mask-R-CNN-FPN", "SOFTMAX", "MODEL.LONG_TAIL.CALIBRATION.NAME", "FRACAL")
    cfg.merge_from_list(statistics)
    for _, predictor in classifier_layers(Trainer.build_model(cfg)):
        torch.testing.assert_close(predictor.calibration.divisor, dimensions.float() ** 2)


def test_a_calibration_without_statistics_is_told_so(lvis_folder):
    path = write_config(lvis_folder, "Mask-R-CNN-FPN", "MODEL.LONG_TAIL.CALIBRATION.NAME", "NORCAL")
    with pytest.raises(InputError, match="NORCAL, which needs no statistics"):
        collected(path)
