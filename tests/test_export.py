"""Exported detectors find what the model finds, on images of other sizes than the one that was traced."""

import json

import numpy as np
import pytest
import torch

from eql_d2 import export
from eql_d2.commands import export as command
from eql_d2.data.builtin import register_from_config
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.predictor import Predictor
from tests.conftest import NUM_CLASSES, tiny_config, write_image
from tests.modeling.test_retinanet import config as retinanet_config


def spread(layer, args):
    """Give the classifier logits of about N(0, 1), whatever the features of an untrained model."""
    mean = args[0].mean(0)
    layer.weight.normal_().div_((args[0] - mean).norm(dim=1).mean())
    layer.bias.copy_(-(layer.weight @ mean))


def predictor_of(folder, architecture, loss, *opts):
    """A model whose scores differ from class to class and region to region."""
    cfg = tiny_config(folder, architecture, loss, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, *opts)
    register_from_config(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).eval()
    handles = [layer.cls_score.register_forward_pre_hook(spread) for _, layer in classifier_layers(model)]
    with torch.no_grad():
        model([{"image": torch.from_numpy(images_of((64, 64))[0].transpose(2, 0, 1).copy())}])
    for handle in handles:
        handle.remove()
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return Predictor(cfg, weights=str(folder / "model.pth"))


def images_of(*sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def needs(suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")


IMAGES = [(64, 80), (96, 70), (40, 64), (64, 64)]


@pytest.mark.parametrize(
    "suffix, architecture, loss, opts",
    [
        (".onnx", "Mask-R-CNN-FPN", "EQL", []),
        (".onnx", "Cascade-Mask-R-CNN-FPN", "SEESAW", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        (".ts", "Mask-R-CNN-C4", "BAGS", ["MODEL.MASK_ON", False]),
    ],
)
def test_equal_outputs(lvis_folder, suffix, architecture, loss, opts):
    needs(suffix)
    predictor = predictor_of(lvis_folder, architecture, loss, *opts)
    first, *others = images_of(*IMAGES)
    path = lvis_folder / f"model{suffix}"
    export.export_detector(predictor, first, path)
    comparison = export.compare_detector(predictor, [first, *others], path)
    assert comparison.images == 4 and comparison.detections > 60 and comparison.at_the_cut == 0
    assert set(comparison.differences) == {"boxes", "scores"} | ({"masks"} if "MODEL.MASK_ON" not in opts else set())
    outputs = export.load_detector(path)(predictor.example(first)["image"])
    assert outputs[2].dtype == np.int64 and set(outputs[2]) <= set(range(NUM_CLASSES)) and len(set(outputs[2])) > 1
    described = json.loads((lvis_folder / "model.json").read_text())
    assert described["classes"][:2] == ["class_0", "class_1"] and described["input"]["shorter_side"] == 64
    assert described["outputs"] == list(export.OUTPUTS[: len(outputs)]) and described["thresholds"] is None


def test_an_image_without_detections(lvis_folder):
    needs(".onnx")
    predictor = predictor_of(lvis_folder, "Mask-R-CNN-FPN", "SIGMOID")
    best = [float(predictor(image).scores[0]) for image in images_of(*IMAGES)]
    ordered = sorted(range(len(best)), key=best.__getitem__)
    predictor.model.roi_heads.box_predictor.test_score_thresh = (best[ordered[-2]] + best[ordered[-1]]) / 2
    images = [images_of(*IMAGES)[i] for i in reversed(ordered)]
    export.export_detector(predictor, images[0], lvis_folder / "model.onnx")
    comparison = export.compare_detector(predictor, images, lvis_folder / "model.onnx")
    assert 0 < comparison.detections == len(predictor(images[0]))


def test_a_detector_that_differs_is_told(lvis_folder):
    predictor = predictor_of(lvis_folder, "Mask-R-CNN-FPN", "SIGMOID")
    first, *others = images_of(*IMAGES)
    export.export_detector(predictor, first, lvis_folder / "model.ts")
    with torch.no_grad():
        predictor.model.roi_heads.box_predictor.cls_score.weight *= -1
    with pytest.raises(InputError, match=r"model.ts, image 1: the model finds 20 objects .* without a counterpart"):
        export.compare_detector(predictor, [first, *others], lvis_folder / "model.ts")


def test_the_command(lvis_folder, capsys):
    predictor_of(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX")
    (lvis_folder / "some").mkdir()
    write_image(lvis_folder / "some" / "a.png", 70)
    write_image(lvis_folder / "some" / "b.png", 90, seed=2)
    arguments = ["--config-file", str(lvis_folder / "config.yaml"), "--images", str(lvis_folder / "some")]
    weights = ["--opts", "MODEL.WEIGHTS", str(lvis_folder / "model.pth")]
    command.main([*arguments, "--output", str(lvis_folder / "model.ts"), *weights])
    assert "the same 40 detections on 2 images: boxes within" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"must end in .onnx .* or .ts"):
        command.main([*arguments, "--output", str(lvis_folder / "model.pt"), *weights])


def test_what_cannot_be_exported(lvis_folder):
    predictor = predictor_of(lvis_folder, "Mask-R-CNN-FPN", "SIGMOID", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    with pytest.raises(InputError, match=r"finds nothing in the first image"):
        export.export_detector(predictor, images_of((64, 64))[0], lvis_folder / "model.ts")


@pytest.mark.parametrize("suffix, improved, loss", [(".onnx", True, "EFL"), (".ts", False, "SIGMOID")])
def test_one_stage(lvis_folder, suffix, improved, loss):
    needs(suffix)
    cfg = retinanet_config(lvis_folder, loss, improved, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96)
    register_from_config(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    with torch.no_grad():
        model.head.cls_score.weight.normal_(std=0.03)
    torch.save({"model": model.state_dict()}, lvis_folder / "model.pth")
    predictor = Predictor(cfg, weights=str(lvis_folder / "model.pth"))
    first, *others = images_of(*IMAGES)
    path = lvis_folder / f"model{suffix}"
    export.export_detector(predictor, first, path)
    comparison = export.compare_detector(predictor, [first, *others], path)
    assert comparison.detections > 50 and comparison.at_the_cut == 0
    # Of an image in its own size, they are what the model returns.
    (found,) = predictor.model.inference([predictor.example(first)], do_postprocess=False)
    (returned,) = predictor.model.inference([predictor.example(first)])
    assert torch.equal(found.pred_boxes.tensor, returned["instances"].pred_boxes.tensor) and len(found) > 5
    assert torch.equal(found.scores, returned["instances"].scores)
