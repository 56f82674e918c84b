"""Other frameworks' checkpoints: every name, the order of the columns, equal outputs, nothing dropped silently."""

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model

from eql_d2.commands.convert_checkpoint import main
from eql_d2.config import get_cfg
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.convert import convert_checkpoint
from eql_d2.errors import InputError
from eql_d2.losses import build_classifier_loss
from tests.conftest import NUM_CLASSES, tiny_config

COUNTS = [150, 120, 50, 5, 1]
FREQUENCY = CategoryFrequency.from_counts(COUNTS, num_images=200)
K = NUM_CLASSES


def mmdet_state(model, background_first, stages=0):
    """A Mask R-CNN's state dict by mmdetection's names (version 1 has no ``roi_head.``), shaped to fit ``model``."""
    ours = model.state_dict()
    heads = "" if background_first else "roi_head."
    state = {f"backbone.{k}": v for k, v in torchvision.models.resnet18().state_dict().items() if "fc." not in k}
    pairs = {"rpn_head.rpn_conv": "conv", "rpn_head.rpn_cls": "objectness_logits", "rpn_head.rpn_reg": "anchor_deltas"}
    pairs = {name: f"proposal_generator.rpn_head.{end}" for name, end in pairs.items()}
    for level in range(4):
        pairs[f"neck.lateral_convs.{level}.conv"] = f"backbone.fpn_lateral{level + 2}"
        pairs[f"neck.fpn_convs.{level}.conv"] = f"backbone.fpn_output{level + 2}"
        pairs[f"{heads}mask_head.convs.{level}.conv"] = f"roi_heads.mask_head.mask_fcn{level + 1}"
    pairs[f"{heads}mask_head.upsample"] = "roi_heads.mask_head.deconv"
    pairs[f"{heads}mask_head.conv_logits"] = "roi_heads.mask_head.predictor"
    for stage in [f"{stage}." for stage in range(stages)] or [""]:
        pairs[f"{heads}bbox_head.{stage}shared_fcs.0"] = f"roi_heads.box_head.{stage}fc1"
        pairs[f"{heads}bbox_head.{stage}shared_fcs.1"] = f"roi_heads.box_head.{stage}fc2"
        pairs[f"{heads}bbox_head.{stage}fc_cls"] = f"roi_heads.box_predictor.{stage}cls_score"
        pairs[f"{heads}bbox_head.{stage}fc_reg"] = f"roi_heads.box_predictor.{stage}bbox_pred"
    generator = torch.Generator().manual_seed(0)
    for theirs, name in pairs.items():
        for part in ("weight", "bias"):
            shape = list(ours[f"{name}.{part}"].shape)
            per_class = 4 if "fc_reg" in theirs else 1 if "conv_logits" in theirs else 0
            if background_first and per_class and shape[0] > per_class:
                shape[0] += per_class
            state[f"{theirs}.{part}"] = torch.randn(shape, generator=generator)
    return state


@pytest.mark.parametrize("layout, method, loss", [("mmdet2", "eql_v2", "EQL_V2"), ("mmdet1", "acsl", "ACSL")])
@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_every_parameter_has_its_place(lvis_folder, architecture, layout, method, loss):
    model = build_model(tiny_config(lvis_folder, architecture, loss))
    stages = 3 if architecture.startswith("Cascade") else 0
    state = mmdet_state(model, layout == "mmdet1", stages)
    converted = convert_checkpoint(state, layout, method, K)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    skipped = {name for name in expected if "num_batches_tracked" in name or ".classifier_loss." in name}
    found = {name: value.shape for name, value in converted.model.items()}
    assert found == {name: shape for name, shape in expected.items() if name not in skipped}
    rest = {line.split(":")[0] for line in converted.left_over}
    assert {name for name in state if "num_batches_tracked" in name} <= rest
    partly = {name for name in state if ("fc_reg" in name and not stages) or "conv_logits" in name}
    assert {name for name in rest if "num_batches_tracked" not in name} == (partly if layout == "mmdet1" else set())


def test_boxes_and_masks_of_background_are_left_out(lvis_folder):
    model = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "ACSL"))
    state = mmdet_state(model, background_first=True)
    converted = convert_checkpoint(state, "mmdet1", "acsl", K)
    predictor = "roi_heads.box_predictor"
    assert torch.equal(converted.model[f"{predictor}.bbox_pred.weight"], state["bbox_head.fc_reg.weight"][4:])
    masks = state["mask_head.conv_logits.weight"]
    assert torch.equal(converted.model["roi_heads.mask_head.predictor.weight"], masks[1:])
    assert "bbox_head.fc_reg.bias: its first 4 rows, those of background, have no place here" in converted.left_over


def their_scores(method, layout, logits):
    """The test scores of mmdetection's box heads, ``[R, K]`` by id; the group columns of BAGS by hand."""
    if method in ("softmax", "acsl"):
        scores = torch.softmax(logits, 1) if method == "softmax" else torch.sigmoid(logits)
        return scores[:, 1:] if layout == "mmdet1" else scores[:, :K]
    if method == "eql_v2":
        return torch.sigmoid(logits[:, :K]) * (1 - torch.sigmoid(logits[:, K:]))
    if method == "seesaw":
        return torch.softmax(logits[:, :K], 1) * torch.softmax(logits[:, K:], 1)[:, :1]
    # Background, foreground; others and the classes 3, 4 of fewer than ten instances; others, 2; others, 0, 1.
    foreground = torch.softmax(logits[:, :2], 1)[:, 1]
    rare, common, frequent = (torch.softmax(logits[:, a:b], 1) for a, b in ((2, 5), (5, 7), (7, 10)))
    in_group = torch.stack([frequent[:, 1], frequent[:, 2], common[:, 1], rare[:, 1], rare[:, 2]], dim=1)
    return in_group * foreground[:, None]


@pytest.mark.parametrize(
    "layout, method, width",
    [
        ("mmdet2", "softmax", K + 1),
        ("mmdet2", "eql_v2", K + 1),
        ("mmdet2", "seesaw", K + 2),
        ("mmdet1", "softmax", K + 1),
        ("mmdet1", "acsl", K + 1),
        ("mmdet1", "bags", K + 5),
    ],
)
def test_scores_are_those_of_their_box_head(layout, method, width):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(width, 8, generator=generator)
    bias, features = torch.randn(width, generator=generator), torch.randn(20, 8, generator=generator)
    heads = "roi_head." if layout == "mmdet2" else ""
    state = {f"{heads}bbox_head.fc_cls.weight": weight, f"{heads}bbox_head.fc_cls.bias": bias}
    bounds = (10, 100)
    model = convert_checkpoint(state, layout, method, K, FREQUENCY, bounds).model
    prefix = "roi_heads.box_predictor.cls_score."
    logits = torch.nn.functional.linear(features, model[f"{prefix}weight"], model[f"{prefix}bias"])
    settings = {"GROUP_BOUNDS": bounds} if method == "bags" else {}
    loss = build_classifier_loss(method.upper(), FREQUENCY, settings)
    expected = their_scores(method, layout, features @ weight.T + bias)
    torch.testing.assert_close(loss.scores(logits)[:, :K], expected, rtol=1e-5, atol=1e-7)


def test_what_losses_accumulated(lvis_folder):
    gradients, seen = torch.rand(K), torch.rand(K + 1)
    name = "roi_heads.box_predictor.classifier_loss."
    state = {f"roi_head.bbox_head.loss_cls.{key}": gradients for key in ("pos_grad", "neg_grad", "pos_neg")}
    converted = convert_checkpoint(state, "mmdet2", "eql_v2", K)
    assert {key: value.dtype for key, value in converted.model.items()} == {
        f"{name}pos_grad": torch.float64,
        f"{name}neg_grad": torch.float64,
    }
    assert converted.left_over == [f"roi_head.bbox_head.loss_cls.pos_neg: [{K}], has no place here"]
    state = {"roi_head.bbox_head.loss_cls.cum_samples": seen}
    converted = convert_checkpoint(state, "mmdet2", "seesaw", K)
    assert torch.equal(converted.model[f"{name}num_seen"], seen[:K].double())
    states = [set(build_classifier_loss(loss, K, {}).state_dict()) for loss in ("SEESAW", "EQL_V2")]
    assert "num_seen" in states[0] and {"pos_grad", "neg_grad"} <= states[1]


def test_normed_layers_get_their_temperature(lvis_folder):
    opts = ["MODEL.LONG_TAIL.CLASSIFIER", "normed", "MODEL.LONG_TAIL.MASK_PREDICTOR", "normed"]
    model = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SEESAW", *opts))
    state = mmdet_state(model, background_first=False)
    model.load_state_dict(convert_checkpoint(state, "mmdet2", "seesaw", K, temperatures=(20, 20)).model, strict=False)
    with pytest.raises(InputError, match="those of a linear layer"):
        model.load_state_dict(convert_checkpoint(state, "mmdet2", "seesaw", K).model, strict=False)


def test_imagenet_backbone(tmp_path, capsys):
    """The tool's file in a Detectron2 ResNet: the same features as torchvision's, and the classifier is listed."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    main([str(tmp_path / "resnet18.pth"), str(tmp_path / "converted.pth"), "--layout", "imagenet"])
    printed = capsys.readouterr().out
    assert "left over: fc.weight: [1000, 512], has no place here" in printed
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(tmp_path / "converted.pth")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    ours = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"bottom_up": build_backbone(cfg)})}).eval()
    DetectionCheckpointer(ours).load(cfg.MODEL.WEIGHTS)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        res2 = theirs.layer1(stem)
        res5 = theirs.layer4(theirs.layer3(theirs.layer2(res2)))
        found = ours["backbone"]["bottom_up"](images)
    torch.testing.assert_close(found["res2"], res2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["res5"], res5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("mmdet3", "softmax", K), "--layout is 'mmdet3'; there are mmdet2, mmdet1, imagenet, detectron2"),
        (("mmdet2", "acsl", K), "--method is 'acsl'; for --layout mmdet2 there are softmax, eql_v2, seesaw"),
        (("mmdet1", "bags", K), "--method bags needs the counts of 5 classes by --frequency; none are given"),
        (("mmdet1", "bags", 3, FREQUENCY), "of 3 classes by --frequency; those given are of 5"),
        (("mmdet2", "softmax", 7), r"bbox_head.fc_cls.weight has 6 rows, but .* say 8"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(InputError, match=words):
        convert_checkpoint({"bbox_head.fc_cls.weight": torch.zeros(K + 1, 8)}, *arguments)


def test_bad_files(tmp_path):
    arguments = [str(tmp_path / "out.pth"), "--layout", "imagenet"]
    with pytest.raises(InputError, match="there is no such file"):
        main([str(tmp_path / "missing.pth"), *arguments])
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match="is no file of tensors"):
        main([str(tmp_path / "text.pth"), *arguments])
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="holds no parameter that --layout imagenet names"):
        main([str(tmp_path / "other.pth"), *arguments])
    assert not (tmp_path / "out.pth").exists()
