"""The data sets that a config can name."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.config import get_cfg
from eql_d2.data.builtin import LVIS_JSON_FILES, register_builtin, register_from_config, resolve_path
from eql_d2.errors import InputError


def config(*entries):
    cfg = get_cfg()
    cfg.MODEL.LONG_TAIL.DATASETS = [list(entry) if isinstance(entry, tuple) else entry for entry in entries]
    return cfg


@pytest.mark.parametrize("name", LVIS_JSON_FILES)
def test_lvis_is_registered_with_metadata(name):
    register_builtin([name])
    metadata = MetadataCatalog.get(name)
    num_classes = 1230 if "v0.5" in name else 1203
    assert len(metadata.thing_classes) == len(metadata.frequency_groups) == num_classes
    assert metadata.thing_dataset_id_to_contiguous_id == {label + 1: label for label in range(num_classes)}
    assert metadata.evaluator_type == "lvis"
    assert metadata.has_annotations == ("test" not in name)
    assert metadata.json_file == os.path.join("datasets", LVIS_JSON_FILES[name])


def test_published_group_sizes():
    for name, sizes in (("lvis_v0.5_train", (454, 461, 315)), ("lvis_v1_train", (337, 461, 405))):
        register_builtin([name])
        letters = MetadataCatalog.get(name).frequency_groups
        assert tuple(letters.count(letter) for letter in "rcf") == sizes


def test_absent_json_says_what_is_missing():
    register_builtin(["lvis_v1_val"])
    with pytest.raises(InputError, match=r"datasets/lvis/lvis_v1_val.json: there is no such file"):
        DatasetCatalog.get("lvis_v1_val")


@pytest.fixture
def moved_data_root(monkeypatch, tmp_path):
    """Register LVIS below ``tmp_path`` during a test."""
    with monkeypatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        register_builtin(LVIS_JSON_FILES)
        yield tmp_path
    register_builtin(LVIS_JSON_FILES)


def test_builtin_set_below_the_data_folder(moved_data_root, content, coco_root):
    (moved_data_root / "lvis").mkdir()
    (moved_data_root / "lvis" / "lvis_v0.5_val.json").write_text(json.dumps(content))
    records = DatasetCatalog.get("lvis_v0.5_val")
    assert records[0]["file_name"] == str(coco_root / "val2017" / "000000000012.jpg")
    assert records[0]["image_labels"] == {"positive": [1], "negative": [0, 2]}
    assert MetadataCatalog.get("lvis_v0.5_val").thing_classes == ["cat", "dog", "owl", "emu"]


def test_register_from_config_tells_the_formats_apart(save, content, coco_root):
    lvis_json = save(content)
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    coco_json = save(content, "coco.json")
    content["categories"][0]["frequency"] = "r"
    letters_json = save(content, "letters.json")
    cfg = config(
        ("a", lvis_json, str(coco_root)), ("b", coco_json, str(coco_root)), ("c", letters_json, str(coco_root))
    )
    register_from_config(cfg)
    register_from_config(cfg)
    assert [MetadataCatalog.get(name).evaluator_type for name in "abc"] == ["lvis", "coco", "lvis"]


def test_paths_of_the_config(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    monkeypatch.setenv("BIRDS", "/birds")
    assert resolve_path("birds/train.json", "here") == "/data/birds/train.json"
    assert (
        resolve_path("$BIRDS/train.json", "here") == resolve_path("${BIRDS}/train.json", "here") == "/birds/train.json"
    )
    assert resolve_path("/abs/train.json", "here") == "/abs/train.json"
    assert resolve_path("s3://bucket/train.json", "here") == "s3://bucket/train.json"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert resolve_path("birds/train.json", "here") == "datasets/birds/train.json"


@pytest.mark.parametrize("entry", ["a", ("a", "b"), ("a", "b", "c", "d"), ("a", "b", 3), ("", "b", "c")])
def test_bad_entries(entry):
    with pytest.raises(InputError, match=r"MODEL.LONG_TAIL.DATASETS has the entry .*three strings"):
        register_from_config(config(entry))


def test_undefined_variable_missing_file_and_folder(monkeypatch, save, content, tmp_path):
    monkeypatch.delenv("UNDEFINED_FOLDER", raising=False)
    with pytest.raises(InputError, match=r"DATASETS, x: \$UNDEFINED_FOLDER/t.json has .*which is not set"):
        register_from_config(config(("x", "$UNDEFINED_FOLDER/t.json", str(tmp_path))))
    with pytest.raises(InputError, match=r"absent.json: there is no such file"):
        register_from_config(config(("x", str(tmp_path / "absent.json"), str(tmp_path))))
    with pytest.raises(InputError, match=r"no_images: there is no such folder; it should hold the images of x"):
        register_from_config(config(("x", save(content), str(tmp_path / "no_images"))))
    assert "x" not in DatasetCatalog
