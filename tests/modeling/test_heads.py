"""The ROI heads and the meta architecture: what they build, what trains, and where image-level labels arrive."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks, ROIMasks
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY
from eql_d2.modeling.rcnn import verified_classes
from tests.conftest import ARCHITECTURES, NUM_CLASSES, square, tiny_config


def example(labels=None, classes=(0,), size=64, seed=0):
    """Return one training example with a square of each class, and image-level labels if given."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((size, size))
    corners = [(8 + 6 * i, 8 + 6 * i) for i in range(len(classes))]
    instances.gt_boxes = Boxes(torch.tensor([[x, y, x + 24.0, y + 24.0] for x, y in corners]).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = PolygonMasks([[square(x, y, 24.0)] for x, y in corners])
    image = torch.randint(0, 255, (3, size, size), generator=generator, dtype=torch.uint8)
    ret = {"image": image, "instances": instances, "height": size, "width": size}
    if labels is not None:
        ret["image_labels"] = {k: torch.tensor(v, dtype=torch.int64) for k, v in labels.items()}
    return ret


def logit_gradients(model, batch):
    """Return each classifier's logits, the gradient of the sum of losses at them, and the labels of the regions."""
    predictors = [m for m in model.modules() if hasattr(m, "classifier_loss")]
    logits, gradients, labels = [], [], []
    handles = []

    def keep_labels(module, args):
        labels.append(args[1].clone())

    def keep_gradient(module, args, output):
        logits.append(output.detach())
        output.register_hook(lambda gradient: gradients.append(gradient.clone()))

    for predictor in predictors:
        handles.append(predictor.classifier_loss.register_forward_pre_hook(keep_labels))
        handles.append(predictor.cls_score.register_forward_hook(keep_gradient))
    torch.manual_seed(0)
    with EventStorage():
        sum(model(batch).values()).backward()
    for handle in handles:
        handle.remove()
    # Backward visits the last stage first.
    return logits, gradients[::-1], labels


@pytest.mark.parametrize("loss", ["SOFTMAX", "SIGMOID", "EQL"])
@pytest.mark.parametrize("agnostic_mask", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trains_and_infers(lvis_folder, architecture, agnostic_mask, loss):
    cfg = tiny_config(lvis_folder, architecture, loss, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic_mask)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model([example({"positive": [0], "negative": [3]}), example(classes=())])
    assert all(torch.isfinite(value) for value in losses.values())
    assert any(name.startswith("loss_cls") and value > 0 for name, value in losses.items())
    sum(losses.values()).backward()
    weight = next(p for n, p in model.named_parameters() if n.endswith("cls_score.weight"))
    assert weight.grad.abs().sum() > 0
    model.eval()
    image = {**example(), "height": 40, "width": 90}
    with torch.no_grad():
        instances, unpasted = (model([{**image, "paste_masks": paste}])[0]["instances"] for paste in (True, False))
    assert len(instances) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert instances.pred_masks.shape[1:] == (40, 90) and isinstance(unpasted.pred_masks, ROIMasks)
    records = [instances_to_results(form, 1, range(NUM_CLASSES)) for form in (instances, unpasted)]
    assert records[0] == records[1] and all(record["segmentation"] for record in records[0])
    assert ((instances.pred_classes >= 0) & (instances.pred_classes < NUM_CLASSES)).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_image_labels_change_exactly_the_gradients_of_the_paper(lvis_folder, architecture):
    """A negative set on one image restores the negative gradient p_j / R of its tail classes on that image's
    foreground regions, and changes nothing else (EQL, equation 7 and section 4.2)."""
    model = build_model(tiny_config(lvis_folder, architecture)).train()
    for module in model.modules():  # the same forward pass twice
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    without = [example({"positive": [0], "negative": []}), example({"positive": [1], "negative": []}, (1,), seed=1)]
    negative = [2, 3, 1]  # a common, a rare and a frequent class; only the first two are tail
    with_set = [example({"positive": [0], "negative": negative}), without[1]]
    _, before, labels = logit_gradients(model, without)
    logits, after, labels_after = logit_gradients(model, with_set)
    assert len(before) == (3 if architecture.startswith("Cascade") else 1)

    for stage, (first, second) in enumerate(zip(before, after)):
        assert torch.equal(labels[stage], labels_after[stage])
        regions = len(labels[stage])
        foreground = labels[stage] < NUM_CLASSES
        # Class 0 is only in the first image, class 1 only in the second: the labels tell the image.
        of_first_image = labels[stage] == 0
        assert of_first_image.any() and (labels[stage] == 1).any()
        expected = torch.zeros_like(first, dtype=torch.bool)
        for j in (2, 3):
            expected[of_first_image, j] = True
        # The cascade's later stages see the same boxes, since box regression does not depend on the class.
        assert torch.equal(first != second, expected)
        assert (first[expected] == 0).all()
        assert torch.allclose(second[expected], torch.sigmoid(logits[stage])[expected] / regions, rtol=1e-4)
        # Background regions keep discouraging tail classes with or without the sets.
        assert (first[~foreground] > 0).all()


def test_images_without_labels_verify_nothing():
    assert verified_classes([example(), example()], 5) is None
    verified = verified_classes([example(), example({"positive": [1], "negative": [4]})], 5)
    assert verified.tolist() == [[False] * 5, [False, True, False, False, True]]


def test_labels_reach_sampled_proposals_without_a_copy(lvis_folder):
    model = build_model(tiny_config(lvis_folder)).train()
    seen = []
    inner = model.roi_heads._forward_box
    model.roi_heads._forward_box = lambda features, proposals: (seen.extend(proposals), inner(features, proposals))[1]
    with EventStorage():
        model([example({"positive": [0], "negative": [2]}), example(classes=())])
    assert [p.verified[0].tolist() for p in seen] == [[True, False, True, False, False], [False] * 5]
    assert all(p.verified.stride(0) == 0 and len(p.verified) == len(p) for p in seen)
    assert model.roi_heads._verified is None


def test_box_loss_reaches_the_last_class(lvis_folder):
    """The released EQL code takes class K - 1 for background in the box loss, since its logits have no last column."""
    model = build_model(tiny_config(lvis_folder)).train()
    predictor = model.roi_heads.box_predictor
    _, _, labels = logit_gradients(model, [example(classes=(NUM_CLASSES - 1,))])
    assert (labels[0] == NUM_CLASSES - 1).any()
    rows = predictor.bbox_pred.weight.grad.reshape(NUM_CLASSES, 4, -1).abs().sum(dim=(1, 2))
    assert rows[NUM_CLASSES - 1] > 0 and (rows[:-1] == 0).all()


def test_the_loss_decides_width_and_bias(lvis_folder):
    for name, width, bias in (("SOFTMAX", NUM_CLASSES + 1, 0.0), ("EQL", NUM_CLASSES, -6.9068)):
        layer = build_model(tiny_config(lvis_folder, loss=name)).roi_heads.box_predictor.cls_score
        assert (
            layer.out_features
            == width
            == CLASSIFIER_LOSS_REGISTRY.get(name)(
                NUM_CLASSES if name == "SOFTMAX" else _frequency(lvis_folder)
            ).num_logits
        )
        assert torch.allclose(layer.bias, torch.full((width,), bias), atol=1e-3)


def _frequency(folder):
    from eql_d2.data.frequency import CategoryFrequency

    return CategoryFrequency.from_json(folder / "frequency.json")


def test_softmax_equals_detectron2(lvis_folder):
    """With the softmax loss every loss equals that of Detectron2's own head on the same weights."""
    cfg = tiny_config(lvis_folder, loss="SOFTMAX")
    ours = build_model(cfg).train()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"])
    theirs = build_model(cfg).train()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    results = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        with EventStorage():
            results.append(model([example(), example(classes=(1, 2), seed=1)]))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], rtol=1e-5), name


@pytest.mark.parametrize("classes", [(0, NUM_CLASSES - 1, 2), ()])
def test_gathered_box_deltas_equal_the_whole_layer(lvis_folder, classes):
    """Same loss and gradients whether all deltas are computed (as for TRAIN_ON_PRED_BOXES) or those that are used."""
    results = []
    for whole in (False, True):
        model = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL")).train()
        predictor = model.roi_heads.box_predictor
        assert predictor.gather_deltas
        predictor.gather_deltas = not whole
        generator = torch.Generator().manual_seed(0)
        for parameter in predictor.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)
        gt_classes = torch.tensor([*classes, NUM_CLASSES, NUM_CLASSES])
        x = torch.randn(len(gt_classes), 32, generator=generator, requires_grad=True)
        proposals = Instances((64, 64), gt_classes=gt_classes)
        corner = torch.rand(len(gt_classes), 2, generator=generator) * 30
        proposals.proposal_boxes = Boxes(torch.cat([corner, corner + 20], dim=1))
        proposals.gt_boxes = Boxes(torch.cat([corner + 2, corner + 25], dim=1))
        with EventStorage():
            losses = predictor.losses(predictor(x), [proposals])
        losses["loss_box_reg"].backward()
        results.append((losses["loss_box_reg"], x.grad, predictor.bbox_pred.weight.grad, predictor.bbox_pred.bias.grad))
    assert (results[0][0] > 0) == bool(classes)
    for gathered, whole in zip(*results):
        assert torch.allclose(gathered, whole, rtol=1e-5, atol=1e-7)


def test_statistics_are_logged_where_the_writers_write(lvis_folder):
    model = build_model(tiny_config(lvis_folder, loss="EQL_V2")).train()
    for iteration, logged in ((18, False), (19, True)):
        with EventStorage(iteration) as storage:
            model([example({"positive": [0], "negative": [2]}, (0, 1)), example(classes=())])
            values = {name: value for name, (value, _) in storage.latest().items() if name.startswith("long_tail/")}
        assert bool(values) == logged
    regions = [values[f"long_tail/num_regions/{group}"] for group in ("rare", "common", "frequent", "background")]
    assert sum(regions) == 64 and regions[0] == 0 and regions[2] > 0
    assert {"long_tail/gradient_ratio/rare", "long_tail/negative_weight/frequent"} <= set(values)
