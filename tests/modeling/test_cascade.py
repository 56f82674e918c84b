"""The cascade's settings: Detectron2's by default, the ACSL and BAGS releases' where asked for."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.utils.events import EventStorage

from eql_d2.errors import InputError
from eql_d2.losses import LogitStatistics
from eql_d2.modeling.classifier_layer import classifier_layers
from tests.conftest import NUM_CLASSES, tiny_config
from tests.modeling.test_heads import example

CASCADE = "Cascade-Mask-R-CNN-FPN"
LOGITS = ["MODEL.LONG_TAIL.CASCADE.SCORES", "logits"]
WEIGHTS = ["MODEL.LONG_TAIL.CASCADE.STAGE_LOSS_WEIGHTS", (1.0, 0.5, 0.25)]
#: Without a mask head: Detectron2's is compared elsewhere.
BOXES = ["MODEL.MASK_ON", False]


def shorten(layer, args):
    """Give the features, large behind untrained layers, the length 1."""
    return (args[0] / args[0].norm(dim=1, keepdim=True).clamp(min=1e-6),)


def cascade(folder, loss="SOFTMAX", *opts):
    """A model whose stages are far from agreeing: logits of a deviation of 2, not saturated."""
    torch.manual_seed(0)
    model = build_model(tiny_config(folder, CASCADE, loss, *BOXES, *opts))
    generator = torch.Generator().manual_seed(2)
    for _, predictor in classifier_layers(model):
        with torch.no_grad():
            for parameter in predictor.cls_score.parameters():
                parameter.normal_(0, 2, generator=generator)
        predictor.cls_score.register_forward_pre_hook(shorten)
    return model


def detectron2s(folder, model):
    cfg = tiny_config(folder, CASCADE, "SOFTMAX", *BOXES)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"])
    theirs = build_model(cfg)
    for predictor in theirs.roi_heads.box_predictor:
        predictor.cls_score.register_forward_pre_hook(shorten)
    theirs.load_state_dict(model.state_dict())
    return theirs


def training_losses(model, batch):
    torch.manual_seed(3)
    with EventStorage():
        return model.train()(batch)


@torch.no_grad()
def detections(model, image=None):
    return model.eval()([image or example()])[0]["instances"]


def test_the_default_is_detectron2s_to_the_bit(lvis_folder):
    ours = cascade(lvis_folder)
    theirs = detectron2s(lvis_folder, ours)
    batch = [example(), example(classes=(1, 2), seed=1)]
    losses, expected = training_losses(ours, batch), training_losses(theirs, batch)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    theirs.load_state_dict(ours.state_dict())  # batch norm has seen the batch
    found, expected = detections(ours), detections(theirs)
    for field in ("scores", "pred_classes"):
        assert torch.equal(found.get(field), expected.get(field)), field
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_losses_of_the_stages(lvis_folder):
    """Each stage's losses times its factor, those of the proposals as they are; one factor is that of all stages."""
    plain, weighted = cascade(lvis_folder), cascade(lvis_folder, "SOFTMAX", *WEIGHTS)
    batch = [example(), example(classes=(1, 2), seed=1)]
    losses, expected = training_losses(weighted, batch), training_losses(plain, batch)
    assert losses.keys() == expected.keys() and len(losses) == 3 * 2 + 2
    for name, value in expected.items():
        stage = int(name[-1]) if "_stage" in name else 0
        torch.testing.assert_close(losses[name], value * (1.0, 0.5, 0.25)[stage])
    one = cascade(lvis_folder, "SOFTMAX", WEIGHTS[0], (0.5,))
    assert one.roi_heads.stage_loss_weights == (0.5, 0.5, 0.5)


def slow_detections(model, scores_of):
    """The detections of one image from each stage's logits: their mean, through ``scores_of``, by Detectron2's NMS."""
    logits, boxes = [], []
    handles = []
    for _, predictor in classifier_layers(model):
        handles.append(predictor.register_forward_hook(lambda module, args, output: logits.append(output[0])))
    heads = model.roi_heads
    last, predict_boxes = heads.box_predictor[-1], heads.box_predictor[-1].predict_boxes
    last.predict_boxes = lambda *args: boxes.append(predict_boxes(*args)) or boxes[-1]
    found = detections(model)
    for handle in handles:
        handle.remove()
    del last.predict_boxes
    assert len(logits) == 3
    rows = []
    for of_region in zip(*logits):  # the same region of the three stages, which have the same order
        rows.append(torch.stack([sum(column) / 3 for column in zip(*of_region)]))
    scores = scores_of(torch.stack(rows))
    (expected,), _ = fast_rcnn_inference(
        boxes[-1], [scores], [(64, 64)], last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image
    )
    return found, expected


def acsl_scores(logits):
    probability = torch.sigmoid(logits)
    return torch.cat([probability[:, :-1], probability[:, -1:]], dim=1)


def bags_scores(logits):
    """K = 5 classes of the counts 150, 120, 50, 5, 1 with bounds 10, 100: three groups, others, then foreground and
    background; softmax in the group times that of foreground."""
    foreground = torch.softmax(logits[:, -2:], dim=1)
    columns = [None] * NUM_CLASSES
    for others, members in enumerate(((3, 4), (2,), (0, 1))):
        probability = torch.softmax(logits[:, [*members, NUM_CLASSES + others]], dim=1)
        for column, j in enumerate(members):
            columns[j] = probability[:, column] * foreground[:, 0]
    return torch.stack([*columns, foreground[:, 1]], dim=1)


@pytest.mark.parametrize(
    "loss, opts, scores_of",
    [
        ("SOFTMAX", [], lambda logits: torch.softmax(logits, dim=1)),
        ("ACSL", [], acsl_scores),
        ("BAGS", ["MODEL.LONG_TAIL.BAGS.GROUP_BOUNDS", (10, 100)], bags_scores),
    ],
)
def test_mean_of_logits(lvis_folder, loss, opts, scores_of):
    model = cascade(lvis_folder, loss, *LOGITS, *opts)
    found, expected = slow_detections(model, scores_of)
    assert len(found) == len(expected) == 20
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    # The mean of the probabilities is another thing.
    other = detections(cascade(lvis_folder, loss, *opts))
    assert not torch.allclose(other.scores, found.scores, atol=1e-3)


def test_calibration_of_the_mean(lvis_folder):
    """NorCal divides the scores of the mean logits."""
    calibration = ["MODEL.LONG_TAIL.CALIBRATION.NAME", "NORCAL"]
    model = cascade(lvis_folder, "SOFTMAX", *LOGITS, *calibration)
    predictor = model.roi_heads.box_predictor[-1]
    found, expected = slow_detections(model, lambda logits: predictor.calibration(predictor.classifier_loss, logits))
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "opts, words",
    [
        ([WEIGHTS[0], (1.0, 0.5)], r"STAGE_LOSS_WEIGHTS is \(1.0, 0.5\), but the cascade has 3 stages"),
        ([LOGITS[0], "scores"], "CASCADE.SCORES is 'scores'; there are 'probabilities' and 'logits'"),
    ],
)
def test_bad_settings(lvis_folder, opts, words):
    with pytest.raises(InputError, match=words):
        cascade(lvis_folder, "SOFTMAX", *opts)


def test_statistics_of_one_stage_are_not_those_of_the_mean(lvis_folder):
    for suffix in ("", "_stage1", "_stage2"):
        LogitStatistics(NUM_CLASSES + 1).save(lvis_folder / f"statistics{suffix}.pth")
    opts = ["MODEL.LONG_TAIL.CALIBRATION.NAME", "LOGN"]
    opts += ["MODEL.LONG_TAIL.CALIBRATION.LOGN.STATISTICS", str(lvis_folder / "statistics.pth")]
    cascade(lvis_folder, "SOFTMAX", *opts)
    with pytest.raises(InputError, match="LOGN has statistics of each stage's own logits"):
        cascade(lvis_folder, "SOFTMAX", *LOGITS, *opts)
