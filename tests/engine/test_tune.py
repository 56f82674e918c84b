"""Tuning the free constants of a calibration: one pass over the images, the metrics of a full evaluation each."""

import csv
import json

import pytest
import torch
import yaml

from eql_d2.config import load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.engine import argument_parser
from eql_d2.engine import setup as setup_run
from eql_d2.engine.calibrate import calibrate, calibrate_parser
from eql_d2.engine.trainer import Trainer, load_trained_model, run
from eql_d2.engine.tune import _at_the_border
from eql_d2.errors import InputError
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.modeling.rescoring import remembering
from tests.conftest import ARCHITECTURES, tiny_config
from tests.engine.test_protocol import trained_weights

HELD_OUT = "held_out_of_"
NORCAL = ["MODEL.LONG_TAIL.CALIBRATION.NAME", "NORCAL"]


def detect_to_be_found(folder, weights, architecture):
    """Make objects of some of the model's own boxes and masks, those of low scores too, so that AP is not zero."""
    cfg = tiny_config(folder, architecture, "SOFTMAX", "MODEL.WEIGHTS", str(weights), "TEST.DETECTIONS_PER_IMAGE", 100)
    register_from_config(cfg)
    model = load_trained_model(cfg, False, "A test").eval()
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = []
    for (image,) in Trainer.build_test_loader(cfg, f"{folder.name}_train"):
        with torch.no_grad():
            (output,) = model([image])
        records = instances_to_results(output["instances"].to("cpu"), image["image_id"], {i: i + 1 for i in range(5)})
        for record in records[::4]:
            content["annotations"].append(
                {**record, "id": len(content["annotations"]) + 1, "area": record["bbox"][2] * record["bbox"][3]}
            )
    (folder / "held_out.json").write_text(json.dumps(content))


@pytest.fixture
def tuned(lvis_folder):
    """Return a function that tunes on the tiny data set and returns the points with their metrics, and the file."""

    def tune(architecture, opts, *arguments):
        path = lvis_folder / "config.yaml"
        if not path.exists():
            weights = trained_weights(lvis_folder, architecture)
            detect_to_be_found(lvis_folder, weights, architecture)
            held_out = [HELD_OUT + lvis_folder.name, str(lvis_folder / "held_out.json"), str(lvis_folder / "images")]
            # Few detections of 5 classes times all proposals, so that other constants let other ones through.
            opts = ["MODEL.WEIGHTS", str(weights), "TEST.DETECTIONS_PER_IMAGE", 7, *opts]
            cfg = tiny_config(lvis_folder, architecture, "SOFTMAX", *opts)
            cfg.MODEL.LONG_TAIL.DATASETS.append(held_out)
            cfg.DATASETS.TEST = (held_out[0],)
            path.write_text(cfg.dump())
        arguments = ["--tune", "--dataset", HELD_OUT + lvis_folder.name, *arguments]
        args = calibrate_parser().parse_args(["--config-file", str(path), *arguments])
        (file,) = calibrate(setup_run(args), args)
        with open(lvis_folder / "output" / "tuning.csv") as rows:
            return list(csv.DictReader(rows)), file

    return tune


def evaluated(path, *opts):
    args = argument_parser().parse_args(["--config-file", str(path), "--eval-only", *opts])
    results = run(setup_run(args), args)
    return {f"{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}


def assert_equal_metrics(row, expected):
    for name, value in expected.items():
        assert row[name] == str(value), name


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_each_point_equals_a_full_evaluation(lvis_folder, tuned, architecture, capsys):
    """Also of masks, which are computed for the boxes of each point, and the best can be evaluated as it is written."""
    grid = ["--grid", "CALIBRATION.NORCAL.GAMMA=0,0.7,1.5"]
    rows, file = tuned(architecture, NORCAL, *grid, "--metric", "segm/AP")
    assert [row["CALIBRATION.NORCAL.GAMMA"] for row in rows] == ["0.0", "0.7", "1.5"]
    key = "MODEL.LONG_TAIL.CALIBRATION.NORCAL.GAMMA"
    for row in rows[::2]:
        assert_equal_metrics(row, evaluated(lvis_folder / "config.yaml", key, row["CALIBRATION.NORCAL.GAMMA"]))
    assert all(len({row[name] for row in rows}) == 3 and float(rows[0][name]) > 1 for name in ("bbox/AP", "segm/AP"))
    best = max(rows, key=lambda row: float(row["segm/AP"]))
    chosen = load_config(str(file)).MODEL.LONG_TAIL.CALIBRATION
    assert chosen.NAME == "NORCAL" and float(best["CALIBRATION.NORCAL.GAMMA"]) == chosen.NORCAL.GAMMA
    assert_equal_metrics(best, evaluated(file))
    assert not (lvis_folder / "output" / "tuning").exists()
    out = capsys.readouterr().out
    assert "| CALIBRATION.NORCAL.GAMMA | segm/AP | bbox/AP |" in out and "warning" not in out.split("| best |")[0]


def test_tau_by_default_and_boxes_alone(lvis_folder, tuned):
    rows, _ = tuned("Mask-R-CNN-FPN", [], "--metric", "bbox/AP50")
    assert [float(row["TAU_NORM.TAU"]) for row in rows] == [tenth / 10 for tenth in range(11)]
    assert not any(name.startswith("segm") for name in rows[0]), "no mask is computed for a metric of boxes"
    for row in (rows[0], rows[10]):
        opts = ["MODEL.MASK_ON", "False", "MODEL.LONG_TAIL.TAU_NORM.TAU", row["TAU_NORM.TAU"]]
        assert_equal_metrics(row, evaluated(lvis_folder / "config.yaml", *opts))
    assert float(rows[0]["bbox/AP50"]) > 1 and rows[0]["bbox/AP50"] != rows[10]["bbox/AP50"]


def test_the_network_runs_once_for_each_image(lvis_folder, tuned, monkeypatch):
    runs = []
    build = Trainer.build_model.__func__

    def watched(cls, cfg):
        model = build(cls, cfg)
        body = model.backbone.bottom_up.forward
        model.backbone.bottom_up.forward = lambda x: runs.append(1) or body(x)
        return model

    monkeypatch.setattr(Trainer, "build_model", classmethod(watched))
    tuned("Mask-R-CNN-FPN", NORCAL, "--metric", "bbox/AP")
    assert len(runs) == 1 + 4 + 4  # the first five make the weights and the objects


def test_combinations_and_fixed(tuned):
    grid = ["--grid", "CALIBRATION.NORCAL.GAMMA=0,1", "--grid", "MODEL.LONG_TAIL.TAU_NORM.TAU=0,0.5,1"]
    fixed = ["MODEL.LONG_TAIL.AP_FIXED", "True"]
    rows, file = tuned("Mask-R-CNN-FPN", [*NORCAL, "MODEL.MASK_ON", False], *grid, "--metric", "bbox/AP-fixed", *fixed)
    assert len(rows) == 6 and len({(row["CALIBRATION.NORCAL.GAMMA"], row["TAU_NORM.TAU"]) for row in rows}) == 6
    content = yaml.safe_load(file.read_text())["MODEL"]["LONG_TAIL"]
    best = max(rows, key=lambda row: float(row["bbox/AP-fixed"]))
    assert content["TAU_NORM"]["TAU"] == float(best["TAU_NORM.TAU"])


def test_an_interrupted_pass_goes_on(lvis_folder, tuned, monkeypatch):
    """The images whose predictions of all points are on disk are not computed again, and the metrics are equal."""
    whole, _ = tuned("Mask-R-CNN-FPN", NORCAL)
    seen = []
    forward = torch.nn.Module.__call__

    def interrupted(self, *args, **kwargs):
        if type(self).__name__ == "LongTailRCNN":
            seen.append(args[0][0]["image_id"])
            if len(seen) == 25:  # in the third image of eleven points
                raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned("Mask-R-CNN-FPN", NORCAL)
    seen.clear()
    seen.extend([0] * 25)
    resumed, _ = tuned("Mask-R-CNN-FPN", NORCAL)
    assert len(set(seen)) == 1 + 2 and resumed == whole


def test_values_at_the_border_are_named():
    grid = {"A": [0.0, 0.5, 1.0], "B": [2.0], "C": ["images", "instances"]}
    assert not list(_at_the_border(grid, {"A": 0.5, "B": 2.0, "C": "images"}))
    (words,) = _at_the_border(grid, {"A": 1.0, "B": 2.0, "C": "images"})
    assert "the best MODEL.LONG_TAIL.A, 1.0, is the largest of the grid" in words


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_of_several_images_and_images_without_detections(lvis_folder, architecture):
    """The same scores and masks as of the model as it is, also where the boxes' layers are the masks' too (C4)."""
    weights = trained_weights(lvis_folder, architecture)
    cfg = tiny_config(lvis_folder, architecture, "SOFTMAX", "MODEL.WEIGHTS", str(weights))
    register_from_config(cfg)
    model = load_trained_model(cfg, False, "A test").eval()
    images = [image for (image,) in Trainer.build_test_loader(cfg, f"{lvis_folder.name}_train")]
    (_, predictor) = list(classifier_layers(model))[-1]
    with torch.no_grad(), remembering(model) as memory:
        for batch in (images[:3], images[3:]):
            memory.forget()
            for threshold in (0.0, 1.5, 0.0):
                predictor.test_score_thresh = threshold
                memory.rewind()
                outputs = [output["instances"] for output in model(batch)]
                assert all(output.pred_masks.shape[1:] == output.image_size for output in outputs)
                assert all((len(output) == 0) == (threshold > 0) for output in outputs)
    with torch.no_grad():
        for output, plain in zip(outputs, model(images[3:])):
            assert torch.equal(output.scores, plain["instances"].scores)
            assert torch.equal(output.pred_masks, plain["instances"].pred_masks)


BAD_INPUT = [
    (["--dataset", ""], "--tune needs held-out data"),
    (["--max-images", "2"], "--max-images is not for --tune"),
    (["--grid", "CALIBRATION.NORCAL.GAMA=0,1"], "CALIBRATION.NORCAL.GAMA is no key of"),
    (["--grid", "LOSS=SOFTMAX"], "LOSS is no key of"),
    (["--grid", "TAU_NORM.TAU=a"], "the values of TAU_NORM.TAU are floats"),
    (["--grid", "TAU_NORM.TAU=2"], "TAU_NORM.TAU is 2.0; it lies between 0 and 1"),
    (["--metric", "bbox/AP-fixed"], "it needs MODEL.LONG_TAIL.AP_FIXED True"),
    (["--metric", "segm/AP", "MODEL.MASK_ON", "False"], "MODEL.MASK_ON is False"),
    (["--metric", "bbox/APx", "--grid", "TAU_NORM.TAU=0"], "--metric is 'bbox/APx'.*there are bbox/AP, "),
    (["--metric", "bbox/APl", "--grid", "TAU_NORM.TAU=0"], "is not a number at any point"),
    (["MODEL.LONG_TAIL.CALIBRATION.NAME", "LOGN"], "LOGN, which has no free constants"),
]


def test_bad_input(tuned):
    for arguments, words in BAD_INPUT:
        with pytest.raises(InputError, match=words):
            tuned("Mask-R-CNN-FPN", [], *arguments)


def test_a_normed_classifier_has_no_tau(lvis_folder):
    model = Trainer.build_model(
        tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", "MODEL.LONG_TAIL.CLASSIFIER", "normed")
    )
    with pytest.raises(InputError, match="equally long"):
        model.roi_heads.box_predictor.score_by(None, 0.5)


def test_the_flags_mean_nothing_without_it(lvis_folder):
    path = lvis_folder / "config.yaml"
    path.write_text(tiny_config(lvis_folder).dump())
    args = calibrate_parser().parse_args(["--config-file", str(path), "--metric", "bbox/AP"])
    with pytest.raises(InputError, match="are for --tune"):
        calibrate(setup_run(args), args)
