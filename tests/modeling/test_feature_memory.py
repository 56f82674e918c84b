"""LOCE's memory: what is kept, what is drawn, and how its regions are trained; and which regions are of one object."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2.engine.protocol import freeze
from eql_d2.errors import InputError
from eql_d2.modeling.feature_memory import FeatureMemory, objects_of_regions
from tests.conftest import tiny_config
from tests.modeling.test_heads import example

MEMORY = ["MODEL.LONG_TAIL.FEATURE_MEMORY.SIZE", 20]


def target(classes, boxes, size=(100, 100)):
    instances = Instances(size)
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor(boxes)), torch.tensor(classes)
    return instances


def corners(boxes):
    """Features of regions that say where they were pooled."""
    return torch.cat([b.tensor for b in boxes])[:, :, None, None]


def test_it_keeps_the_last_features_around_each_object():
    memory = FeatureMemory(size=20, num_draws=3, num_features=4, jitter=0.25)
    memory.put([target([2], [[10.0, 10.0, 50.0, 30.0]]), target([0], [[90.0, 90.0, 100.0, 100.0]])], corners)
    (drawn,) = memory.draw(torch.tensor([0.0, 0.0, 1.0]))
    assert len(drawn) == 12 and (drawn.gt_classes == 2).all() and drawn.features.shape == (12, 4, 1, 1)
    torch.testing.assert_close(drawn.features[:, :, 0, 0], drawn.proposal_boxes.tensor)
    shift = drawn.proposal_boxes.tensor - drawn.gt_boxes.tensor
    assert (shift.abs() <= 0.25 * torch.tensor([40.0, 20.0, 40.0, 20.0])).all() and shift.abs().sum() > 0
    # Boxes stay in the image.
    (drawn,) = memory.draw(torch.tensor([1.0, 0.0, 0.0]))
    assert drawn.proposal_boxes.tensor.max() == 100
    # Another object's 16 push out the first of the 20.
    for _ in range(2):
        memory.put([target([2], [[20.0, 20.0, 40.0, 40.0]])], corners)
    (drawn,) = memory.draw(torch.tensor([0.0, 0.0, 1.0]))
    assert (drawn.gt_boxes.tensor == torch.tensor([20.0, 20.0, 40.0, 40.0])).all()


def test_classes_without_features_give_none():
    memory = FeatureMemory(size=20, num_draws=8, num_features=4, jitter=0.0)
    assert memory.draw(torch.ones(3)) == []
    memory.put([target([1], [[10.0, 10.0, 50.0, 30.0]])], corners)
    (drawn,) = memory.draw(torch.tensor([1.0, 1.0, 1.0]))
    assert 0 < len(drawn) < 32 and len(drawn) % 4 == 0 and (drawn.gt_classes == 1).all()


def test_regions_of_one_object():
    """By class and box in each image; regions from memory by class."""
    image, other = Instances((9, 9)), Instances((9, 9))
    image.gt_classes = torch.tensor([1, 2, 1, 5])
    image.gt_boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 2, 2]]))
    other.gt_classes, other.object_keys = torch.tensor([1, 0, 1]), torch.tensor([[1], [0], [1]])
    empty = Instances((9, 9))
    empty.gt_classes = torch.tensor([5, 5])
    assert objects_of_regions([image, other, empty]).tolist() == [0, 1, 0, 3, 4, 5, 4, 7, 8]


def test_its_regions_are_classified_and_no_mask_is_trained_by_them(lvis_folder):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "LOCE", *MEMORY, "MODEL.LONG_TAIL.FEATURE_MEMORY.DRAWS", 2)
    model = build_model(cfg).train()
    heads = model.roi_heads
    labels, images = [], []
    heads.box_predictor.classifier_loss.register_forward_pre_hook(lambda module, args: labels.append(args[1]))
    heads.mask_head.register_forward_pre_hook(lambda module, args: images.append(len(args[1])))
    for _ in range(2):
        heads.box_predictor.classifier_loss.mean_score.fill_(1.0)[0] = 1e-9  # draws class 0 alone
        with EventStorage():
            losses = model([example({"positive": [0], "negative": []}), example(classes=(1,))])
        assert all(torch.isfinite(loss) for loss in losses.values())
        # Two classes are drawn, four features of each; the second image has none of that class.
        assert (labels[-1][-8:] == 0).all() and images[-1] == 2
        assert len(labels[-1]) <= 2 * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE + 8
        # What is drawn is one observation of its class, beside that of the one object.
        assert heads.box_predictor.classifier_loss.mean_score[0] > 0
    model.eval()
    with torch.no_grad():
        assert len(model([example()])[0]["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert len(labels) == 2


def test_predictors_alone_are_trained(lvis_folder):
    model = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "LOCE", *MEMORY))
    freeze(model, "predictors")
    trained = {name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"proposal_generator.rpn_head", "roi_heads.box_predictor", "roi_heads.mask_head"}
    assert not any(p.requires_grad for p in model.roi_heads.box_head.parameters())


@pytest.mark.parametrize(
    "architecture, loss, opts, word",
    [
        ("Mask-R-CNN-FPN", "SOFTMAX", MEMORY, "LOSS 'SOFTMAX' does not say which classes it wants; LOCE does"),
        ("Cascade-Mask-R-CNN-FPN", "LOCE", MEMORY, "FEATURE_MEMORY.SIZE is 20, which LongTailCascadeROIHeads has not"),
        ("Mask-R-CNN-C4", "LOCE", MEMORY, "LongTailRes5ROIHeads has not"),
        ("Mask-R-CNN-FPN", "LOCE", [*MEMORY, "MODEL.LONG_TAIL.FEATURE_MEMORY.JITTER", 0.5], "JITTER is 0.5"),
        ("Mask-R-CNN-FPN", "LOCE", [*MEMORY, "MODEL.LONG_TAIL.FEATURE_MEMORY.DRAWS", 0], "DRAWS is 0"),
        ("Mask-R-CNN-FPN", "LOCE", [*MEMORY, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True], "TRAIN_ON_PRED_BOXES"),
    ],
)
def test_what_has_no_memory(lvis_folder, architecture, loss, opts, word):
    with pytest.raises(InputError, match=word):
        build_model(tiny_config(lvis_folder, architecture, loss, *opts))
