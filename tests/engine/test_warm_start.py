"""A training that starts from a detector of other classes: what each class takes over."""

import copy
import json

import pytest
import torch

from eql_d2.engine.trainer import Trainer
from eql_d2.engine.warm_start import class_names, match_classes
from eql_d2.errors import InputError
from tests.conftest import tiny_config
from tests.engine.test_protocol import trainer_of
from tests.modeling.test_retinanet import config as retinanet_config

#: Classes of the weights; those of the training are class_0 to class_4.
SOURCE = ["Class 3", "unicorn", "class_1"]
MATCHES = {3: 0, 1: 2}


@pytest.fixture
def source_json(lvis_folder):
    content = json.loads((lvis_folder / "train.json").read_text())
    content["categories"] = [{**content["categories"][i], "name": name} for i, name in enumerate(SOURCE)]
    content.update(images=[], annotations=[])
    (lvis_folder / "source.json").write_text(json.dumps(content))
    return lvis_folder / "source.json"


def weights_of(folder, architecture, loss, *opts):
    """Save the weights of a model of three classes, none of them as a model begins."""
    cfg = tiny_config(folder, architecture, loss, "MODEL.ROI_HEADS.NUM_CLASSES", len(SOURCE), *opts)
    cfg.MODEL.LONG_TAIL.FREQUENCY = str(folder / "source_frequency.json")
    counts = {"image_count": [9, 8, 7], "num_images": 20}
    (folder / "source_frequency.json").write_text(json.dumps(counts))
    torch.manual_seed(5)
    state = Trainer.build_model(cfg).state_dict()
    state = {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in state.items()}
    torch.save({"model": state}, folder / "source.pth")
    return state


def start(folder, source, architecture="Mask-R-CNN-FPN", loss="SOFTMAX", *opts):
    opts = ["MODEL.LONG_TAIL.INIT_CLASSIFIER", "match", "MODEL.LONG_TAIL.INIT_CLASSES", str(source), *opts]
    opts += ["MODEL.WEIGHTS", str(folder / "source.pth"), "SOLVER.IMS_PER_BATCH", 2]
    return trainer_of(tiny_config(folder, architecture, loss, *opts))


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_classes_of_the_same_name_keep_their_rows(lvis_folder, source_json, architecture):
    source = weights_of(lvis_folder, architecture, "SOFTMAX")
    found = start(lvis_folder, source_json, architecture).model.state_dict()
    checked = 0
    for name, value in found.items():
        width = 1 if "cls_score" in name or "mask_head.predictor" in name else 4 if ".bbox_pred." in name else 0
        if not width or len(value) == width:
            assert torch.equal(value, source[name]), name
            continue
        rows, source_rows = value.unflatten(0, (-1, width)), source[name].unflatten(0, (-1, width))
        for new, old in MATCHES.items():
            assert torch.equal(rows[new], source_rows[old]), name
        new_rows = rows[[0, 2, 4]]  # as the model began: the source's are as far from it as N(0, 1)
        assert new_rows.std() < 0.5 and not torch.equal(rows[0], source_rows[1])
        assert "cls_score" not in name or torch.equal(rows[5], source_rows[3])  # background
        checked += 1
    assert checked == (8 if architecture.startswith("Cascade") else 6)


def test_another_loss_and_class_agnostic_boxes(lvis_folder, source_json):
    """EQL has no background column and EQL v2 sums, which begin anew; one box for all classes becomes each one's."""
    source = weights_of(lvis_folder, "Mask-R-CNN-FPN", "EQL_V2", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    found = start(lvis_folder, source_json, "Mask-R-CNN-FPN", "EQL").model.state_dict()
    head = "roi_heads.box_predictor"
    assert len(found[f"{head}.cls_score.weight"]) == 5
    assert torch.equal(found[f"{head}.cls_score.weight"][1], source[f"{head}.cls_score.weight"][2])
    assert torch.equal(found[f"{head}.bbox_pred.bias"].view(5, 4), source[f"{head}.bbox_pred.bias"].expand(5, 4))
    again = start(lvis_folder, source_json, "Mask-R-CNN-FPN", "EQL_V2").model.state_dict()
    assert not again[f"{head}.classifier_loss.pos_grad"].any()


def test_retinanet(lvis_folder, source_json):
    """The rows of an anchor are side by side, each anchor's classes in order."""
    cfg = retinanet_config(lvis_folder)
    cfg.MODEL.LONG_TAIL.INIT_CLASSES = str(source_json)
    model = Trainer.build_model(cfg)
    before = copy.deepcopy(model.state_dict())
    name, anchors = "head.cls_score.weight", len(before["head.cls_score.weight"]) // 5
    assert anchors > 1
    source = torch.randn(anchors * 3, *before[name].shape[1:])
    state = {name: source}
    trainer_of(cfg)  # registers its data
    match_classes(cfg, model, state)
    rows, source_rows = state[name].unflatten(0, (anchors, 5)), source.unflatten(0, (anchors, 3))
    assert torch.equal(rows[:, [3, 1]], source_rows[:, [0, 2]])
    assert torch.equal(rows[:, [0, 2, 4]], before[name].unflatten(0, (anchors, 5))[:, [0, 2, 4]])


def test_class_names(source_json):
    assert class_names(str(source_json)) == SOURCE
    assert class_names("coco_2017_val")[:2] == ["person", "bicycle"]  # Detectron2's, without its files


def test_bad_input(lvis_folder, source_json):
    weights_of(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX")
    with pytest.raises(InputError, match=r"needs the class names .*INIT_CLASSES to"):
        start(lvis_folder, "")
    with pytest.raises(InputError, match=r"None of the 5 classes .*class_0.* 80 of .*coco_2017_val \(person"):
        start(lvis_folder, "coco_2017_val")
    with pytest.raises(InputError, match=r"cls_score.weight is \[4, 32\] in MODEL.WEIGHTS .* the 5 classes"):
        start(lvis_folder, lvis_folder / "train.json")
    with pytest.raises(InputError, match=r"no such|No data set|cannot be read|is not there"):
        start(lvis_folder, lvis_folder / "absent.json")
