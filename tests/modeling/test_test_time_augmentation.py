"""Test-time augmentation on every architecture: one plain view is the plain detector, and mirrors do not matter."""

import pytest
import torch
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import AugInput, AugmentationList, ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from torchvision.ops import nms

from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.losses import LogN
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.modeling.test_time_augmentation import TestTimeAugmentation
from tests.conftest import ARCHITECTURES, NUM_CLASSES, tiny_config
from tests.modeling.test_cascade import shorten
from tests.modeling.test_retinanet import config as retinanet_config

EVERY = [*ARCHITECTURES, "RetinaNet-FPN"]
PLAIN = ["TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 128, "TEST.AUG.FLIP", False, "INPUT.MAX_SIZE_TEST", 128]
SEVERAL = ["TEST.AUG.MIN_SIZES", (48, 64), "TEST.AUG.MAX_SIZE", 128, "TEST.AUG.FLIP", True, "INPUT.MAX_SIZE_TEST", 128]


def detector(folder, architecture, loss="SIGMOID", *opts):
    """A config and an untrained model, whose scores differ from box to box."""
    if architecture.startswith("RetinaNet"):
        cfg = retinanet_config(folder, loss, False, *opts)
    else:
        cfg = tiny_config(folder, architecture, loss, *opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if name.endswith(("cls_score", "bbox_pred")):
            for parameter in module.parameters():
                parameter.data.normal_(0, 1 if name.endswith("cls_score") else 0.3, generator=generator)
            module.register_forward_pre_hook(shorten)
    return cfg, model


def photograph(height=90, width=120, mirrored=False):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image.flip(2) if mirrored else image, "height": height, "width": width}


@torch.no_grad()
def plainly(cfg, model, image):
    """What the model finds in the image as the loader resizes it."""
    given = AugInput(image["image"].permute(1, 2, 0).numpy())
    AugmentationList(build_augmentation(cfg, is_train=False))(given)
    return model([{**image, "image": torch.as_tensor(given.image.transpose(2, 0, 1).copy())}])[0]["instances"]


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize("masks", [True, False])
def test_one_plain_view_finds_what_the_model_finds(lvis_folder, architecture, masks):
    """Scores, classes and mask pixels to the bit, boxes but for the rounding of their way back to the output."""
    cfg, model = detector(lvis_folder, architecture, "SIGMOID", *PLAIN, "MODEL.LONG_TAIL.TTA.MASKS", masks)
    expected = plainly(cfg, model, photograph())
    (found,) = TestTimeAugmentation(cfg, model)([photograph()])
    found = found["instances"]
    assert len(found) == len(expected) > 10 and found.image_size == (90, 120)
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    assert found.has("pred_masks") == expected.has("pred_masks") == (architecture in ARCHITECTURES)
    if found.has("pred_masks"):
        assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
        (unpasted,) = TestTimeAugmentation(cfg, model)([{**photograph(), "paste_masks": False}])
        assert isinstance(unpasted["instances"].pred_masks, ROIMasks)
        records = [instances_to_results(one, 1, range(NUM_CLASSES)) for one in (unpasted["instances"], found)]
        assert records[0] == records[1]


@pytest.mark.parametrize(
    "loss, opts",
    [
        ("SOFTMAX", ["MODEL.LONG_TAIL.CALIBRATION.NAME", "NORCAL"]),
        ("SOFTMAX", "LOGN"),
        ("SOFTMAX", ["MODEL.LONG_TAIL.TAU_NORM.TAU", 0.5]),
        ("BAGS", []),
        ("ACSL", []),
    ],
)
@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_scores_keep_their_calibration(lvis_folder, architecture, loss, opts):
    without = opts if opts != "LOGN" else []
    cfg, model = detector(lvis_folder, architecture, loss, *PLAIN, "MODEL.MASK_ON", False, *without)
    if opts == "LOGN":
        for _, layer in classifier_layers(model):
            layer.calibration = LogN(NUM_CLASSES)
            layer.calibration.mean.copy_(torch.arange(NUM_CLASSES) / 10.0)
    expected = plainly(cfg, model, photograph())
    (found,) = TestTimeAugmentation(cfg, model)([photograph()])
    torch.testing.assert_close(found["instances"].scores, expected.scores)


@pytest.mark.parametrize("architecture", EVERY)
def test_a_mirrored_image_has_mirrored_detections(lvis_folder, architecture):
    """With FLIP both images have the same views, in another order. (Halved and whole, they are mirrored to the bit.)"""
    cfg, model = detector(lvis_folder, architecture, "SIGMOID", *SEVERAL, "TEST.AUG.MIN_SIZES", (32, 64))
    augmented = TestTimeAugmentation(cfg, model)
    found, mirrored = (augmented([photograph(64, 96, m)])[0]["instances"] for m in (False, True))
    torch.testing.assert_close(found.scores, mirrored.scores)
    boxes = mirrored.pred_boxes.tensor
    boxes = torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=2e-3)
    if found.has("pred_masks"):
        assert found.pred_masks.any()
        assert (found.pred_masks != mirrored.pred_masks.flip(2)).float().mean() < 2e-3


@torch.no_grad()
def slow_detections(cfg, model, image):
    """Every view by hand: resized by Detectron2, mirrored by numpy, one class after the other through NMS."""
    pixels = image["image"].permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    found = []
    for size in cfg.TEST.AUG.MIN_SIZES:
        resize = ResizeShortestEdge(size, cfg.TEST.AUG.MAX_SIZE).get_transform(pixels)
        for mirrored in (False, True):
            view = torch.as_tensor(resize.apply_image(pixels).transpose(2, 0, 1).copy())
            view = view.flip(2) if mirrored else view
            instances = model([{"image": view, "height": view.shape[1], "width": view.shape[2]}])[0]["instances"]
            boxes = instances.pred_boxes.tensor.clone()
            if mirrored:
                boxes = torch.stack(
                    [view.shape[2] - boxes[:, 2], boxes[:, 1], view.shape[2] - boxes[:, 0], boxes[:, 3]], 1
                )
            boxes *= boxes.new_tensor([width / view.shape[2], height / view.shape[1]] * 2)
            found += zip(boxes, instances.scores, instances.pred_classes.tolist())
    kept = []
    for label in {label for _, _, label in found}:
        of_class = [(box, score) for box, score, other in found if other == label]
        boxes, scores = (torch.stack(parts) for parts in zip(*of_class))
        kept += [(float(scores[i]), label) for i in nms(boxes, scores, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST)]
    return sorted(kept, reverse=True)[: cfg.TEST.DETECTIONS_PER_IMAGE]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_views_are_joined_as_by_hand(lvis_folder, architecture):
    cfg, model = detector(lvis_folder, architecture, "SIGMOID", *SEVERAL, "MODEL.MASK_ON", False)
    (found,) = TestTimeAugmentation(cfg, model)([photograph()])
    expected = slow_detections(cfg, model, photograph())
    found = sorted(zip(found["instances"].scores.tolist(), found["instances"].pred_classes.tolist()), reverse=True)
    assert [label for _, label in found] == [label for _, label in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mask_probabilities_are_averaged_over_the_views(lvis_folder, architecture):
    """The mean of what one scale alone predicts for the same boxes; without it, the plain view's."""
    cfg, model = detector(lvis_folder, architecture, "SIGMOID", *SEVERAL)
    augmented = TestTimeAugmentation(cfg, model)
    views = {}
    masks_in = TestTimeAugmentation._masks_in

    def keep(view, detections):
        views[tuple(view.image.shape[1:]), view.is_mirrored] = masks_in(augmented, view, detections)
        return views[tuple(view.image.shape[1:]), view.is_mirrored]

    augmented._masks_in = keep
    (found,) = augmented([photograph()])
    assert sorted(views) == [((48, 64), False), ((48, 64), True), ((64, 85), False), ((64, 85), True)]
    mean = found["instances"]
    expected = torch.stack(list(views.values())).mean(0)
    boxes = Instances((90, 120), pred_boxes=mean.pred_boxes, pred_masks=expected)
    assert (detector_postprocess(boxes, 90, 120).pred_masks != mean.pred_masks).float().mean() < 1e-3
    views.clear()
    augmented.averages_masks = False
    augmented([photograph()])
    assert sorted(views) == [((64, 85), False)]


def test_nothing_is_found(lvis_folder):
    cfg, model = detector(lvis_folder, ARCHITECTURES[0], "SIGMOID", *SEVERAL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    (found,) = TestTimeAugmentation(cfg, model)([photograph()])
    assert len(found["instances"]) == 0 and found["instances"].pred_masks.shape == (0, 90, 120)
    assert model.roi_heads.mask_on


@pytest.mark.parametrize(
    "opts, words",
    [
        (["TEST.AUG.MIN_SIZES", ()], "MIN_SIZES is empty"),
        (["MODEL.KEYPOINT_ON", True], "MODEL.KEYPOINT_ON are True"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "META_ARCHITECTURE ProposalNetwork is neither"),
    ],
)
def test_what_cannot_be_augmented_is_refused_before_training(lvis_folder, opts, words):
    cfg = tiny_config(lvis_folder, ARCHITECTURES[0], "SIGMOID", "TEST.AUG.ENABLED", True, *opts)
    with pytest.raises(InputError, match=words):
        Trainer.build_model(cfg)
