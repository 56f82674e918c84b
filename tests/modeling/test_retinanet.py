"""One-stage detectors: assignment, losses, inference without a copy of all scores."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from eql_d2.errors import InputError
from eql_d2.losses import EqualizedFocalLoss
from eql_d2.modeling import retinanet
from eql_d2.modeling.assignment import atss
from eql_d2.modeling.statistics import STATISTICS_PERIOD
from tests.conftest import NUM_CLASSES, tiny_config

SERVING = ["DROPLOSS", "EFL", "EQFL", "EQL", "FEDERATED", "FOCAL", "GOL", "SIGMOID"]


def config(folder, loss="FOCAL", improved=False, *opts):
    """A RetinaNet with few channels on 64-pixel images."""
    architecture = "RetinaNet-FPN-improved" if improved else "RetinaNet-FPN"
    cfg = tiny_config(folder, architecture, loss)
    sizes = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[6 * size[0], 8 * size[0]] for size in sizes] if improved else sizes
    cfg.merge_from_list(["MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, *opts])
    cfg.merge_from_list(["MODEL.RETINANET.NORM", ""])
    return cfg


def example(classes=(0, 3), labels=None, size=64):
    """What the mapper gives for one image."""
    instances = Instances((size, size))
    corners = [[4.0 + 8 * i, 6.0 + 4 * i, 34.0 + 8 * i, 38.0 + 4 * i] for i in range(len(classes))]
    instances.gt_boxes = Boxes(torch.tensor(corners).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(classes))
    image = torch.randint(0, 255, (3, size, size), generator=generator, dtype=torch.uint8)
    found = {"image": image, "instances": instances, "height": size, "width": size}
    if labels is not None:
        found["image_labels"] = {key: torch.tensor(value, dtype=torch.int64) for key, value in labels.items()}
    return found


def test_statistics_of_the_loss_are_logged(lvis_folder):
    model = build_model(config(lvis_folder, "EFL")).train()
    with EventStorage(STATISTICS_PERIOD - 1) as storage:
        model([example()])
        logged = set(storage.latest())
    assert {"long_tail/num_regions/background", "long_tail/gradient_ratio/rare"} <= logged
    with EventStorage(STATISTICS_PERIOD) as storage:
        model([example()])
        assert not any(name.startswith("long_tail/") for name in storage.latest())


def train_step(model, batch):
    """Losses of one step after its backward."""
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("loss", SERVING)
def test_every_serving_loss_trains_and_detects(lvis_folder, loss, improved):
    model = build_model(config(lvis_folder, loss, improved))
    losses = train_step(model, [example(), example(classes=())])
    assert set(losses) == {"loss_cls", "loss_box_reg"} | ({"loss_quality"} if improved else set())
    assert all(0 < value < 100 for value in losses.values()), losses
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (output,) = model.eval()([example()])
    assert 0 < len(output["instances"]) <= 20 and output["instances"].pred_classes.max() < NUM_CLASSES


@pytest.mark.parametrize("loss", ["SOFTMAX", "EQL_V2", "BAGS", "SEESAW", "ECM"])
def test_a_loss_with_other_columns_is_refused(lvis_folder, loss):
    with pytest.raises(InputError, match="SIGMOID") as caught:
        build_model(config(lvis_folder, loss))
    assert f"trained with {', '.join(SERVING)}." in str(caught.value)


def test_eql_v2_serves_without_its_extra_column(lvis_folder):
    model = build_model(config(lvis_folder, "EQL_V2", False, "MODEL.LONG_TAIL.EQL_V2.CATEGORY_AGNOSTIC", False))
    assert train_step(model, [example()])["loss_cls"] > 0


def test_unknown_assignment(lvis_folder):
    with pytest.raises(InputError, match="'atss'"):
        build_model(config(lvis_folder, "FOCAL", False, "MODEL.LONG_TAIL.RETINANET.ASSIGNMENT", "simota"))


def test_the_classifier_starts_at_the_prior(lvis_folder):
    model = build_model(config(lvis_folder, "SIGMOID"))
    torch.testing.assert_close(torch.sigmoid(model.head.cls_score.bias), torch.full((15,), 0.001))


def test_losses_equal_detectron2_s_but_for_the_normalizer(lvis_folder):
    """Focal loss and L1 loss of the same model and batch by Detectron2's RetinaNet, whose normalizer is set."""
    cfg = config(lvis_folder)
    model = build_model(cfg)
    with torch.no_grad():  # not at the prior, so that every entry counts
        model.head.cls_score.bias.uniform_(-2, 2, generator=torch.Generator().manual_seed(1))
    batch = [example(), example(classes=(1,))]
    found = train_step(model, batch)
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    theirs = RetinaNet(cfg)
    missing = theirs.load_state_dict(model.state_dict(), strict=False)
    assert missing.missing_keys == []
    with EventStorage() as storage:
        theirs._ema_update = lambda name, value, initial: value
        expected = {name: float(value.detach()) for name, value in theirs.train()(batch).items()}
        assert storage.latest()["num_pos_anchors"][0] > 1
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("threshold, topk", [(0.0, 50), (0.3, 1000), (0.6, 7)])
@pytest.mark.parametrize("scores_at_once", [1 << 22, 40])
def test_inference_equals_detectron2_s(lvis_folder, monkeypatch, threshold, topk, scores_at_once):
    cfg = config(lvis_folder, "EFL")
    cfg.merge_from_list(["MODEL.RETINANET.SCORE_THRESH_TEST", threshold, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", topk])
    model = build_model(cfg).eval()
    monkeypatch.setattr(retinanet, "SCORES_AT_ONCE", scores_at_once)
    batch = [example(), example(classes=(1,))]
    with torch.no_grad():
        images = model.preprocess_image(batch)
        features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
        # Scores all over (0, 1), so that none are equal.
        logits = [(x - x.mean()) / x.std() for x in model.head(features)[0]]
        deltas = model.head(features)[1]
        found = model.forward_inference(images, features, [logits, deltas])
        expected = RetinaNet.forward_inference(model, images, features, [logits, deltas])
    for ours, theirs in zip(found, expected):
        assert len(theirs) == len(ours) > 0
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=0, atol=0)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)


def test_quality_multiplies_the_scores(lvis_folder):
    model = build_model(config(lvis_folder, "FOCAL", True)).eval()
    best = []
    with torch.no_grad():
        model.head.quality_pred.weight.zero_()
        for bias in (0.0, -3.0):
            model.head.quality_pred.bias.fill_(bias)
            best.append(float(model([example()])[0]["instances"].scores.max()))
    assert best[1] / best[0] == pytest.approx(2 * float(torch.sigmoid(torch.tensor(-3.0))), rel=1e-5)


def test_image_level_labels_reach_the_loss(lvis_folder):
    """Tail classes that the image verifies absent are discouraged by its foreground anchors, others are not."""
    model = build_model(config(lvis_folder, "EQL"))
    seen = []
    inner = model.classifier_loss.loss
    model.classifier_loss.loss = lambda logits, labels, verified: (
        seen.append(verified),
        inner(logits, labels, verified),
    )[1]
    train_step(
        model,
        [example(labels={"positive": [0, 3], "negative": [4]}), example(labels={"positive": [1], "negative": []})],
    )
    (verified,) = seen
    assert verified.any(0).tolist() == [True, True, False, True, True]
    rows = torch.unique(verified, dim=0).tolist()
    assert sorted(rows) == sorted([[True, False, False, True, True], [False, True, False, False, False]])


def test_unverified_classes_of_an_image_get_no_gradient(lvis_folder):
    """Class 2 is verified in no image: nothing discourages it where ``UNVERIFIED`` is "exempt"."""
    images = [example(labels={"positive": [0, 3], "negative": [4]}), example(labels={"positive": [1], "negative": []})]
    gradients = []
    for unverified in ("loss", "exempt"):
        cfg = config(lvis_folder, "FOCAL")
        cfg.MODEL.LONG_TAIL.UNVERIFIED = unverified
        model = build_model(cfg)
        train_step(model, images)
        rows = model.head.cls_score.bias.grad.view(-1, NUM_CLASSES)
        gradients.append(rows.abs().sum(0))
    assert (gradients[0] > 0).all()
    assert (gradients[1] > 0).tolist() == [True, True, False, True, True]


def test_the_state_of_all_levels_is_one_and_in_the_checkpoint(lvis_folder):
    model = build_model(config(lvis_folder, "EFL", True))
    train_step(model, [example()])
    losses = [module for module in model.modules() if isinstance(module, EqualizedFocalLoss)]
    assert len(losses) == 1 and losses[0].neg_grad.min() > 0 and losses[0].pos_grad[[0, 3]].min() > 0
    assert "classifier_loss.pos_grad" in model.state_dict()


def slow_atss(levels, objects, topk):
    """Algorithm 1 of arXiv 1912.02424, anchor by anchor."""
    anchors = torch.cat([level.tensor for level in levels]).tolist()
    iou = pairwise_iou(objects, Boxes.cat(levels)).tolist()
    found = [(-1.0, 0)] * len(anchors)
    for g, (x1, y1, x2, y2) in enumerate(objects.tensor.tolist()):
        candidates, start = [], 0
        for level in levels:
            rows = range(start, start + len(level))
            center = {i: ((anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2) for i in rows}
            distance = {i: (c[0] - (x1 + x2) / 2) ** 2 + (c[1] - (y1 + y2) / 2) ** 2 for i, c in center.items()}
            candidates += sorted(rows, key=lambda i: distance[i])[:topk]
            start += len(level)
        values = torch.tensor([iou[g][i] for i in candidates])
        threshold = float(values.mean() + values.std())
        for i in candidates:
            cx, cy = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
            inside = min(cx - x1, cy - y1, x2 - cx, y2 - cy) > 0.01
            if iou[g][i] >= threshold and inside and iou[g][i] > found[i][0]:
                found[i] = (iou[g][i], g)
    return [g for _, g in found], [value >= 0 for value, _ in found]


@pytest.mark.parametrize("seed", range(5))
def test_atss_equals_the_slow_algorithm(seed):
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for stride in (8, 16, 32):
        # Jittered, so that no two anchors are equally far from an object.
        centers = torch.cartesian_prod(torch.arange(0, 64, stride), torch.arange(0, 64, stride)).float()
        centers = centers + torch.rand(centers.shape, generator=generator)
        levels.append(Boxes(torch.cat([centers - 2 * stride, centers + 2 * stride], dim=1)))
    corners = 40 * torch.rand(4, 2, generator=generator)
    objects = Boxes(torch.cat([corners, corners + 8 + 30 * torch.rand(4, 2, generator=generator)], dim=1))
    index, assigned = atss(levels, objects, 3)
    expected_index, expected = slow_atss(levels, objects, 3)
    assert assigned.tolist() == expected and assigned.any()
    assert index.tolist() == [g if yes else 0 for g, yes in zip(expected_index, expected)]


def test_atss_without_objects():
    level = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    index, assigned = atss([level], Boxes(torch.zeros(0, 4)), 9)
    assert index.tolist() == [0] and not assigned.any()
